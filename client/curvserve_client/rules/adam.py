"""Adam and AdamW."""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from .averages import averaged
from .base import LossAt, Quantities, RuleState, Tensors, Update
from .options import AT_LEAST_ZERO, FRACTION, Checked, option
from .steps import penalised, stepped, wide


@dataclass(frozen=True)
class Adam(Checked):
    """p (1 - lr * weight_decay) - lr * m / (sqrt(v) + eps): `torch.optim.Adam`, and `AdamW`.

    m and v are the bias-corrected exponential means, with `beta1` and `beta2`, of g + l2 * p and of
    its square, g the gradient of the mean loss. Kingma, Ba, "Adam: a method for stochastic
    optimization", ICLR 2015; Loshchilov, Hutter, "Decoupled weight decay regularization", ICLR
    2019.

    Attributes:
        lr: step size.
        beta1: share of the mean gradient that is kept.
        beta2: share of the mean square that is kept.
        eps: what is added to the root.
        weight_decay: decoupled decay, by lr * weight_decay at each step: AdamW's.
        l2: coupled penalty l2 / 2 |p|^2, part of the gradient: Adam's.
    """

    lr: float = option(1e-3, AT_LEAST_ZERO)
    beta1: float = option(0.9, FRACTION)
    beta2: float = option(0.999, FRACTION)
    eps: float = option(1e-8, AT_LEAST_ZERO)
    weight_decay: float = option(0.0, AT_LEAST_ZERO)
    l2: float = option(0.0, AT_LEAST_ZERO)

    elementwise: ClassVar[bool] = True
    name: ClassVar[str] = "adam"

    def start(self, parameters: Tensors) -> RuleState:
        """See `Rule`."""
        return RuleState()

    def quantities(self, state: RuleState) -> tuple[str, ...]:
        """See `Rule`."""
        return ("grad",)

    def update(
        self,
        parameters: Tensors,
        quantities: Quantities,
        state: RuleState,
        *,
        loss: Tensor | float,
        loss_at: LossAt,
    ) -> Update:
        """See `Rule`; reads `grad`, of the parameter's shape."""
        gradients = penalised(quantities["grad"], parameters, self.l2)
        squares = {name: wide(gradient).square() for name, gradient in gradients.items()}
        state = averaged(state, "mean", gradients, self.beta1)
        state = averaged(state, "square", squares, self.beta2)
        m, v = state.tensors["mean"], state.tensors["square"]
        directions = {name: m[name] / (v[name].sqrt() + self.eps) for name in gradients}
        moved = stepped(parameters, directions, self.lr, self.weight_decay)
        return Update(moved, state.counted(), {})
