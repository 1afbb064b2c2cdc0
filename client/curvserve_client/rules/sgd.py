"""Plain gradient descent."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from .options import check_at_least_zero


@dataclass(frozen=True)
class SGD:
    """p - lr * g, with g the gradient of the mean loss over the batch.

    Attributes:
        lr: step size, >= 0.
    """

    lr: float = 0.05

    name: ClassVar[str] = "sgd"
    quantities: ClassVar[tuple[str, ...]] = ("grad",)

    def __post_init__(self) -> None:
        """Check the options.

        Raises:
            InvalidRule: an option is out of its range.
        """
        check_at_least_zero("lr", self.lr)

    def update(self, parameter: Tensor, quantities: Mapping[str, Tensor]) -> Tensor:
        """Return the parameter after one step, out of place.

        Args:
            parameter: any shape.
            quantities: `grad`, of the parameter's shape.

        Returns:
            A new tensor of the parameter's shape, dtype and device.
        """
        return torch.add(parameter, quantities["grad"], alpha=-self.lr)
