"""``nn.HuberLoss``, ``nn.SmoothL1Loss`` and ``nn.L1Loss``: quadratic near zero, linear beyond."""

from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from curvserve.engine.errors import UnsupportedLossError
from curvserve.engine.losses.elementwise import Elementwise

__all__ = ["L1", "Huber", "SmoothL1"]


class Huber(Elementwise):
    """Second derivative 1 where ``|f - y| < delta``, 0 beyond."""

    kinds = (nn.HuberLoss,)

    def curvature(self, module: Any, outputs: Tensor, targets: Any) -> Tensor:
        """1 or 0."""
        inside: Tensor = (outputs - targets).abs() < module.delta
        return inside.to(outputs.dtype)


class L1(Elementwise):
    """Second derivative 0; not defined where an output equals its target."""

    kinds: ClassVar[tuple[type[nn.Module], ...]] = (nn.L1Loss,)

    def check(self, module: Any, outputs: Tensor, targets: Any) -> None:
        """Refuses elements where the loss has a kink."""
        super().check(module, outputs, targets)
        if bool((outputs == targets).any()):
            raise UnsupportedLossError(
                f"{type(module).__name__} has no second derivative where an output equals its "
                "target, as one does here; use HuberLoss"
            )

    def curvature(self, module: Any, outputs: Tensor, targets: Any) -> Tensor:
        """Zero."""
        return torch.zeros_like(outputs)


class SmoothL1(L1):
    """Second derivative ``1 / beta`` where ``|f - y| < beta``, 0 beyond."""

    kinds = (nn.SmoothL1Loss,)

    def check(self, module: Any, outputs: Tensor, targets: Any) -> None:
        """With ``beta = 0`` it is ``L1Loss``."""
        if module.beta == 0:
            super().check(module, outputs, targets)
        else:
            Elementwise.check(self, module, outputs, targets)

    def curvature(self, module: Any, outputs: Tensor, targets: Any) -> Tensor:
        """``1 / beta`` or 0."""
        inside: Tensor = (outputs - targets).abs() < module.beta
        return inside.to(outputs.dtype) / (module.beta or 1)
