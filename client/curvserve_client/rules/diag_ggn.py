"""Gradient descent preconditioned with the diagonal of the generalised Gauss-Newton matrix."""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from ..errors import InvalidRule
from .averages import averaged, is_due, remembered
from .base import LossAt, Quantities, RuleState, Tensors, Update
from .clip import clipped
from .kl_clip import kl_scale
from .levenberg_marquardt import Quadratic, Verdict, tried
from .momentum import with_momentum
from .options import ABOVE_ZERO, AT_LEAST_ONE, AT_LEAST_ZERO, FRACTION, Checked, Range, option
from .preconditioned import preconditioned_step
from .quantiles import level_quantiles
from .steps import decayed, penalised, stepped, wide

_CURVATURE = "diag_ggn_mc"
_SLOT = "curvature"


@dataclass(frozen=True)
class DiagGGN(Checked):
    """p - lr * g / (h + damping), with g the gradient and h the Monte-Carlo GGN diagonal.

    Both are of the mean loss over the batch. Dangel, Kunstner, Hennig, "BackPACK: Packing more into
    backprop", ICLR 2020. With every option:

        g <- g + l2 * p
        d = g / (h + damping + l2)^exponent, each coordinate within [-clip, clip]
        d <- d * min(1, sqrt(kl_clip / |lr^2 sum d * g|))
        b <- momentum * b + d
        p <- p (1 - lr * weight_decay) - lr * b

    h is the bias-corrected exponential mean, with `beta2`, of the curvatures that were computed.
    Every `damping_interval` steps the step is tried before it is taken: see
    `levenberg_marquardt.tried`. A refused step changes nothing but the damping, is not counted, and
    the next one is tried too.

    Attributes:
        lr: step size.
        damping: what is added to the curvature; with a `damping_interval`, what it begins with.
        momentum: share of the last direction that is kept, as in `torch.optim.SGD`.
        beta2: share of the mean curvature that is kept; 0 for the last one alone.
        curvature_interval: steps from one computation of the curvature to the next.
        curvature_warmup: first steps that compute the curvature each.
        exponent: 1 for Newton's step, 1/2 for one like Adam's.
        clip: bound on each coordinate of the direction; 0 for none.
        kl_clip: bound on the squared length of the step in the curvature's metric; 0 for none.
        weight_decay: decoupled decay, by lr * weight_decay at each step.
        l2: coupled penalty l2 / 2 |p|^2, part of gradient and curvature.
        damping_interval: steps from one Levenberg-Marquardt trial to the next; 0 for none.
        damping_min: least damping that trials lead to.
        damping_max: largest damping that trials lead to.
        quantiles: report the quantiles 0.1, 0.5 and 0.9 of h, and the share of it that is below the
            damping, of about 10,000 coordinates.
    """

    lr: float = option(0.05, AT_LEAST_ZERO)
    damping: float = option(1.0, ABOVE_ZERO)
    momentum: float = option(0.0, FRACTION)
    beta2: float = option(0.0, FRACTION)
    curvature_interval: int = option(1, AT_LEAST_ONE)
    curvature_warmup: int = option(0, AT_LEAST_ZERO)
    exponent: float = option(1.0, Range(0, 1, above=True))
    clip: float = option(0.0, AT_LEAST_ZERO)
    kl_clip: float = option(0.0, AT_LEAST_ZERO)
    weight_decay: float = option(0.0, AT_LEAST_ZERO)
    l2: float = option(0.0, AT_LEAST_ZERO)
    damping_interval: int = option(0, AT_LEAST_ZERO)
    damping_min: float = option(1e-6, ABOVE_ZERO)
    damping_max: float = option(1e4, ABOVE_ZERO)
    quantiles: bool = option(False)

    name: ClassVar[str] = "diag_ggn"

    def __post_init__(self) -> None:
        """Check the options.

        Raises:
            InvalidRule: an option is out of its range.
        """
        super().__post_init__()
        if self.damping_min > self.damping_max:
            expected = f"damping_min: at most damping_max, {self.damping_max!r}"
            raise InvalidRule(f"damping_min is {self.damping_min!r}", expected=expected)

    @property
    def elementwise(self) -> bool:
        """See `Rule`; not with what is measured over all coordinates."""
        return not (self.kl_clip or self.damping_interval or self.quantiles)

    def start(self, parameters: Tensors) -> RuleState:
        """See `Rule`."""
        return RuleState()

    def quantities(self, state: RuleState) -> tuple[str, ...]:
        """See `Rule`; the curvature is read when it is due, and whenever none is remembered."""
        due = is_due(state, _SLOT, self.curvature_interval, self.curvature_warmup)
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
        gradients = penalised(quantities["grad"], parameters, self.l2)
        curvatures, after = self._curvatures(quantities, state)
        model = Quadratic(gradients, curvatures, self._damping(state), self.l2)
        moved, after, metrics = self._moved(parameters, model, after)
        metrics = {"damping": model.damping, **metrics}
        if self.quantiles:
            metrics |= level_quantiles("curvature", curvatures, model.damping + self.l2)
        step = Update(moved, after.counted(), metrics)
        if not self._is_tried(state):
            return step
        verdict = tried(model, parameters, moved, float(loss), loss_at, self.damping_interval)
        return self._judged(step, verdict, Update(parameters, state, metrics))

    def _damping(self, state: RuleState) -> float:
        return state.scalars.get("damping", self.damping) if self.damping_interval else self.damping

    def _curvatures(self, quantities: Quantities, state: RuleState) -> tuple[Tensors, RuleState]:
        """Return h of every parameter that has a gradient, and the state that remembers it."""
        due = _CURVATURE in self.quantities(state)
        if due and self.beta2 == 0 and self.curvature_interval == 1:
            return quantities[_CURVATURE], state
        if due:
            state = averaged(state, _SLOT, quantities[_CURVATURE], self.beta2)
        return remembered(state, _SLOT, quantities["grad"]), state

    def _moved(
        self, parameters: Tensors, model: Quadratic, state: RuleState
    ) -> tuple[dict[str, Tensor], RuleState, dict[str, float | Tensor]]:
        """Return the parameters after the step, the state, and what there is to tell."""
        if self.exponent == 1 and not (self.clip or self.kl_clip or self.momentum):
            return {**parameters, **self._divided(parameters, model)}, state, {}
        directions, metrics = self._directions(model)
        directions, state = with_momentum(state, directions, self.momentum)
        return stepped(parameters, directions, self.lr, self.weight_decay), state, metrics

    def _divided(self, parameters: Tensors, model: Quadratic) -> dict[str, Tensor]:
        """Return p - lr * g / (h + damping) of every parameter that has a gradient."""
        names = list(model.gradients)
        moved = preconditioned_step(
            [decayed(parameters[name], self.lr, self.weight_decay) for name in names],
            [model.gradients[name] for name in names],
            [model.curvatures[name] for name in names],
            self.lr,
            model.damping + self.l2,
        )
        return {n: p.to(parameters[n].dtype) for n, p in zip(names, moved, strict=True)}

    def _directions(self, model: Quadratic) -> tuple[Tensors, dict[str, float | Tensor]]:
        """Return d of every parameter, clipped, and how much of it was."""
        shift = model.damping + self.l2
        scales = {name: wide(h) + shift for name, h in model.curvatures.items()}
        if self.exponent != 1:
            scales = {name: scale.pow(self.exponent) for name, scale in scales.items()}
        directions: Tensors = {name: wide(g) / scales[name] for name, g in model.gradients.items()}
        metrics: dict[str, float | Tensor] = {}
        if self.clip:
            directions, metrics["clipped"] = clipped(directions, self.clip)
        if self.kl_clip:
            scale = kl_scale(directions, model.gradients, self.lr, self.kl_clip)
            directions = {name: direction * scale for name, direction in directions.items()}
            metrics["kl_scale"] = scale
        return directions, metrics

    def _is_tried(self, state: RuleState) -> bool:
        interval = self.damping_interval
        return interval > 0 and (state.scalars["steps"] + 1) % interval == 0

    def _judged(self, step: Update, verdict: Verdict, before: Update) -> Update:
        """Return the step, or what was before it, with the damping to go on with."""
        made = step if verdict.accepted else before
        damping = float(step.metrics["damping"]) * verdict.factor
        damping = min(max(damping, self.damping_min), self.damping_max)
        metrics = {**step.metrics, "accepted": float(verdict.accepted)}
        if verdict.ratio is not None:
            metrics["reduction_ratio"] = verdict.ratio
        return Update(made.parameters, made.state.with_scalars(damping=damping), metrics)
