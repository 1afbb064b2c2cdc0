"""Sophia: gradient over curvature, clipped."""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from .averages import averaged, is_due, remembered
from .base import LossAt, Quantities, RuleState, Tensors, Update
from .clip import clipped
from .options import ABOVE_ZERO, AT_LEAST_ONE, AT_LEAST_ZERO, FRACTION, Checked, option
from .steps import stepped

_CURVATURE = "diag_ggn_mc"
_SLOT = "curvature"


@dataclass(frozen=True)
class Sophia(Checked):
    """p (1 - lr * weight_decay) - lr * clip(m / max(gamma * h, eps), 1).

    m <- beta1 * m + (1 - beta1) * g at every step and h <- beta2 * h + (1 - beta2) * c every
    `curvature_interval` steps, both from zero and without bias correction; g is the gradient of the
    mean loss and c its Monte-Carlo GGN diagonal. Liu, Li, Hall, Liang, Ma, "Sophia: a scalable
    stochastic second-order optimizer for language model pre-training", ICLR 2024, algorithm 3,
    whose own estimate of c squares the mean of the sampled gradients: no cheaper, and noisier.

    Attributes:
        lr: step size, and the most that a coordinate moves.
        beta1: share of the mean gradient that is kept.
        beta2: share of the mean curvature that is kept.
        gamma: scale of the curvature; the larger, the fewer coordinates are clipped.
        eps: least divisor.
        weight_decay: decoupled decay, by lr * weight_decay at each step.
        curvature_interval: steps from one computation of the curvature to the next.
    """

    lr: float = option(1e-3, AT_LEAST_ZERO)
    beta1: float = option(0.96, FRACTION)
    beta2: float = option(0.99, FRACTION)
    gamma: float = option(0.05, ABOVE_ZERO)
    eps: float = option(1e-12, ABOVE_ZERO)
    weight_decay: float = option(0.0, AT_LEAST_ZERO)
    curvature_interval: int = option(10, AT_LEAST_ONE)

    elementwise: ClassVar[bool] = True
    name: ClassVar[str] = "sophia"

    def start(self, parameters: Tensors) -> RuleState:
        """See `Rule`."""
        return RuleState()

    def quantities(self, state: RuleState) -> tuple[str, ...]:
        """See `Rule`; the curvature is read when it is due, and whenever none is remembered."""
        due = is_due(state, _SLOT, self.curvature_interval)
        return ("grad", _CURVATURE) if due else ("grad",)

    def update(
        self,
        parameters: Tensors,
        quantities: Quantities,
        state: RuleState,
        *,
        loss: Tensor | float,
        loss_at: LossAt,
    ) -> Update:
        """See `Rule`; reads `grad` and `diag_ggn_mc`, each of the parameter's shape."""
        gradients = quantities["grad"]
        due = _CURVATURE in self.quantities(state)
        state = averaged(state, "mean", gradients, self.beta1)
        if due:
            state = averaged(state, _SLOT, quantities[_CURVATURE], self.beta2)
        # the slots are bias-corrected: times their weights they are the plain means
        share = state.scalars["mean_weight"]
        scale = self.gamma * state.scalars[f"{_SLOT}_weight"]
        divisors = remembered(state, _SLOT, gradients)
        directions, beyond = clipped(
            {
                name: state.tensors["mean"][name] * share / (h * scale).clamp(min=self.eps)
                for name, h in divisors.items()
            },
            1.0,
        )
        moved = stepped(parameters, directions, self.lr, self.weight_decay)
        return Update(moved, state.counted(), {"clipped": beyond})
