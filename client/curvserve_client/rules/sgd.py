"""Stochastic gradient descent."""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from ..errors import InvalidRule
from .base import LossAt, Quantities, RuleState, Tensors, Update
from .momentum import with_momentum
from .options import AT_LEAST_ZERO, FRACTION, Checked, option
from .steps import penalised, stepped


@dataclass(frozen=True)
class SGD(Checked):
    """p - lr * b, with b = momentum * b + g + weight_decay * p: `torch.optim.SGD`.

    g is the gradient of the mean loss over the batch. Robbins, Monro, "A stochastic approximation
    method", 1951; Sutskever, Martens, Dahl, Hinton, "On the importance of initialization and
    momentum in deep learning", ICML 2013.

    Attributes:
        lr: step size.
        momentum: share of the last direction that is kept.
        nesterov: look one step ahead: g + weight_decay * p + momentum * b instead of b.
        weight_decay: coupled penalty weight_decay / 2 |p|^2, part of the gradient.
    """

    lr: float = option(0.05, AT_LEAST_ZERO)
    momentum: float = option(0.0, FRACTION)
    nesterov: bool = option(False)
    weight_decay: float = option(0.0, AT_LEAST_ZERO)

    elementwise: ClassVar[bool] = True
    name: ClassVar[str] = "sgd"

    def __post_init__(self) -> None:
        """Check the options.

        Raises:
            InvalidRule: an option is out of its range.
        """
        super().__post_init__()
        if self.nesterov and self.momentum == 0:
            raise InvalidRule("nesterov is True", expected="false, or a momentum > 0")

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
        gradients = penalised(quantities["grad"], parameters, self.weight_decay)
        directions, state = with_momentum(state, gradients, self.momentum, self.nesterov)
        return Update(stepped(parameters, directions, self.lr), state.counted(), {})
