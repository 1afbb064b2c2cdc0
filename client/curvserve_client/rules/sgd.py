"""Plain gradient descent."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from .base import LossAt, RuleState, Tensors, Update
from .options import AT_LEAST_ZERO, Checked, option
from .steps import stepped


@dataclass(frozen=True)
class SGD(Checked):
    """p - lr * g, with g the gradient of the mean loss over the batch.

    Attributes:
        lr: step size.
    """

    lr: float = option(0.05, AT_LEAST_ZERO)

    name: ClassVar[str] = "sgd"

    def start(self, parameters: Tensors) -> RuleState:
        """See `Rule`."""
        return RuleState()

    def quantities(self, state: RuleState) -> tuple[str, ...]:
        """See `Rule`."""
        return ("grad",)

    def update(
        self,
        parameters: Tensors,
        quantities: Mapping[str, Tensors],
        state: RuleState,
        *,
        loss: Tensor | float,
        loss_at: LossAt,
    ) -> Update:
        """See `Rule`; reads `grad`, of the parameter's shape."""
        return Update(stepped(parameters, quantities["grad"], self.lr), state.counted(), {})
