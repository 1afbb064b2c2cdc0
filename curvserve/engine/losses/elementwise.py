"""Losses that are a sum over the elements of the output, each with a second derivative."""

from abc import abstractmethod
from typing import Any

from torch import Tensor

from curvserve.engine.errors import UnsupportedLossError
from curvserve.engine.losses.base import LossRule

__all__ = ["Elementwise"]


class Elementwise(LossRule):
    """Each element is a term of its own: its factor is the root of its second derivative."""

    @abstractmethod
    def curvature(self, module: Any, outputs: Tensor, targets: Any) -> Tensor:
        """The second derivative of each element's undivided loss, not negative."""

    def check(self, module: Any, outputs: Tensor, targets: Any) -> None:
        """Refuses targets that would be broadcast: the elements would not be the terms."""
        first = targets[0] if isinstance(targets, tuple) else targets
        if outputs.shape != first.shape:
            raise UnsupportedLossError(
                f"{type(module).__name__} needs targets of the output's shape "
                f"{tuple(outputs.shape)}, got {tuple(first.shape)}"
            )

    def norm(self, module: Any, outputs: Tensor, targets: Any) -> float:
        """The number of elements."""
        return 1.0 if module.reduction == "sum" else float(outputs.numel())

    def exact(self, module: Any, outputs: Tensor, targets: Any) -> Tensor:
        """The root of the curvature, one column."""
        return self.curvature(module, outputs, targets).sqrt().unsqueeze(0)
