"""K-FAC: the gradient preconditioned with Kronecker-factored curvature."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ..errors import InvalidRule
from .averages import averaged, is_due, remembered
from .base import LossAt, Quantities, RuleState, Tensors, Update
from .kl_clip import kl_scale
from .momentum import with_momentum
from .options import ABOVE_ZERO, AT_LEAST_ONE, AT_LEAST_ZERO, FRACTION, Checked, option
from .steps import stepped, wide

_FACTORS = "kfac"
_OUTER, _INNER = "outer", "inner"
_INVERSE = "{}_inverse"


@dataclass(frozen=True)
class KFAC(Checked):
    """p (1 - lr * weight_decay) - lr * b, with the direction from damped Kronecker factors.

    For a weight whose block of the Gauss-Newton matrix is about B (x) A, and its gradient G as a
    matrix [outputs, inputs]:

        d = (B + sqrt(damping) / pi I)^-1 G (A + pi sqrt(damping) I)^-1
        d <- d * min(1, sqrt(kl_clip / |lr^2 sum d * g|))
        b <- momentum * b + d

    with pi^2 = (tr A / dim A) / (tr B / dim B), 1 where a trace is zero. A vector (bias) has its
    whole block B: d = (B + damping I)^-1 g. A and B are bias-corrected exponential means of the
    batches' factors. Martens, Grosse, "Optimizing neural networks with Kronecker-factored
    approximate curvature", ICML 2015, section 6.3 for the damping; Grosse, Martens, ICML 2016, for
    convolutions. For the clip see `kl_clip`.

    Attributes:
        lr: step size.
        damping: what is added to the curvature, split between the factors.
        momentum: share of the last direction that is kept, as in `torch.optim.SGD`.
        beta2: share of the mean factors that is kept.
        curvature_interval: steps from one computation of the factors to the next.
        inverse_interval: steps from one inversion of the mean factors to the next.
        kl_clip: bound on the squared length of the step in the curvature's metric; 0 for none.
        weight_decay: decoupled decay, by lr * weight_decay at each step.
    """

    lr: float = option(0.05, AT_LEAST_ZERO)
    damping: float = option(0.01, ABOVE_ZERO)
    momentum: float = option(0.0, FRACTION)
    beta2: float = option(0.95, FRACTION)
    curvature_interval: int = option(1, AT_LEAST_ONE)
    inverse_interval: int = option(10, AT_LEAST_ONE)
    kl_clip: float = option(1e-3, AT_LEAST_ZERO)
    weight_decay: float = option(0.0, AT_LEAST_ZERO)

    elementwise: ClassVar[bool] = False
    name: ClassVar[str] = "kfac"

    def start(self, parameters: Tensors) -> RuleState:
        """See `Rule`; which parameters have factors, the first step tells."""
        return RuleState()

    def quantities(self, state: RuleState) -> tuple[str, ...]:
        """See `Rule`; the factors are read when they are due, and whenever none are remembered."""
        due = is_due(state, _OUTER, self.curvature_interval)
        return ("grad", _FACTORS) if due else ("grad",)

    def update(
        self,
        parameters: Tensors,
        quantities: Quantities,
        state: RuleState,
        *,
        loss: Tensor | float,
        loss_at: LossAt,
    ) -> Update:
        """See `Rule`; reads `grad`, and `kfac`: [B, A] of a weight, [B] of a vector.

        Raises:
            InvalidRule: a parameter has no Kronecker factors, or a damped factor is not positive
                definite in float64.
        """
        gradients: Tensors = quantities["grad"]
        inverted = is_due(state, _INVERSE.format(_OUTER), self.inverse_interval)
        if _FACTORS in self.quantities(state):
            state = self._averaged(state, quantities)
        if inverted:
            state = self._inverted(state)
        outer = remembered(state, _INVERSE.format(_OUTER), gradients)
        inner = state.tensors.get(_INVERSE.format(_INNER), {})
        directions: Tensors = {
            name: _divided(gradient, outer[name], inner.get(name))
            for name, gradient in gradients.items()
        }
        metrics: dict[str, float | Tensor] = {"damping": self.damping}
        if self.kl_clip:
            metrics["kl_scale"] = scale = kl_scale(directions, gradients, self.lr, self.kl_clip)
            directions = {name: direction * scale for name, direction in directions.items()}
        directions, state = with_momentum(state, directions, self.momentum)
        moved = stepped(parameters, directions, self.lr, self.weight_decay)
        return Update(moved, state.counted(), metrics)

    def _averaged(self, state: RuleState, quantities: Quantities) -> RuleState:
        factors = {
            name: _checked(name, gradient, quantities[_FACTORS].get(name))
            for name, gradient in quantities["grad"].items()
        }
        outer = {name: both[0] for name, both in factors.items()}
        inner = {name: both[1] for name, both in factors.items() if len(both) == 2}
        return averaged(averaged(state, _OUTER, outer, self.beta2), _INNER, inner, self.beta2)

    def _inverted(self, state: RuleState) -> RuleState:
        outer, inner = {}, {}
        inputs = state.tensors.get(_INNER, {})  # none where all parameters are vectors
        for name, b in state.tensors[_OUTER].items():
            a = inputs.get(name)
            if a is None:
                outer[name] = _inverse(name, b, self.damping)
                continue
            pi = _pi(b, a)
            outer[name] = _inverse(name, b, self.damping**0.5 / pi)
            inner[name] = _inverse(name, a, self.damping**0.5 * pi)
        state = state.with_slot(_INVERSE.format(_OUTER), outer)
        return state.with_slot(_INVERSE.format(_INNER), inner)


def _checked(name: str, gradient: Tensor, factors: list[Tensor] | None) -> list[Tensor]:
    sizes = [] if factors is None else [len(factor) for factor in factors]
    rows = gradient.numel() if gradient.dim() < 2 else gradient.shape[0]
    wanted = [rows] if gradient.dim() < 2 else [rows, gradient.numel() // max(rows, 1)]
    if factors is None or sizes != wanted:
        raise InvalidRule(
            f"{name} of shape {list(gradient.shape)} has Kronecker factors of sizes {sizes}",
            tensor=name,
            expected=f"sizes {wanted}",
        )
    return factors


def _pi(b: Tensor, a: Tensor) -> float:
    """Return the share of the damping that goes to A; 1 where a factor is zero."""
    of_a, of_b = a.diagonal().mean().item(), b.diagonal().mean().item()
    return (of_a / of_b) ** 0.5 if of_a > 0 and of_b > 0 else 1.0


def _inverse(name: str, factor: Tensor, shift: float) -> Tensor:
    """Return (F + shift I)^-1, computed in float64: a factor is a nearly singular Gram matrix."""
    damped = factor.to(torch.float64, copy=True)
    damped.diagonal().add_(shift)
    lower, failed = torch.linalg.cholesky_ex(damped)
    if failed.item():
        raise InvalidRule(
            f"a damped factor of {name} is not positive definite",
            tensor=name,
            expected="a larger damping",
        )
    return torch.cholesky_inverse(lower).to(factor.dtype)


def _divided(gradient: Tensor, outer: Tensor, inner: Tensor | None) -> Tensor:
    matrix = wide(gradient).reshape(len(outer), -1)
    divided = outer @ matrix if inner is None else outer @ matrix @ inner
    return divided.reshape(gradient.shape)
