"""Gradient descent preconditioned with the diagonal of the generalised Gauss-Newton matrix."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from .options import check_above_zero, check_at_least_zero


@dataclass(frozen=True)
class DiagGGN:
    """p - lr * g / (h + damping), with g the gradient and h the Monte-Carlo GGN diagonal.

    Both are of the mean loss over the batch. Dangel, Kunstner, Hennig, "BackPACK: Packing more into
    backprop", ICLR 2020.

    Attributes:
        lr: step size, >= 0.
        damping: what is added to the curvature, > 0.
    """

    lr: float = 0.05
    damping: float = 1.0

    name: ClassVar[str] = "diag_ggn"
    quantities: ClassVar[tuple[str, ...]] = ("grad", "diag_ggn_mc")

    def __post_init__(self) -> None:
        """Check the options.

        Raises:
            InvalidRule: an option is out of its range.
        """
        check_at_least_zero("lr", self.lr)
        check_above_zero("damping", self.damping)

    def update(self, parameter: Tensor, quantities: Mapping[str, Tensor]) -> Tensor:
        """Return the parameter after one step, out of place.

        Args:
            parameter: any shape.
            quantities: `grad` and `diag_ggn_mc`, each of the parameter's shape.

        Returns:
            A new tensor of the parameter's shape, dtype and device.
        """
        curvature = quantities["diag_ggn_mc"] + self.damping
        return torch.addcdiv(parameter, quantities["grad"], curvature, value=-self.lr)
