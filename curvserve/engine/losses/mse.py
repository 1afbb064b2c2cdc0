"""``nn.MSELoss`` of any shape."""

from typing import Any

import torch
from torch import Tensor, nn

from curvserve.engine.losses.base import Draws
from curvserve.engine.losses.elementwise import Elementwise

__all__ = ["MSE"]


class MSE(Elementwise):
    """Squared error: each element is a term of its own with Hessian 2."""

    kinds = (nn.MSELoss,)

    def curvature(self, module: Any, outputs: Tensor, targets: Any) -> Tensor:
        """The constant 2."""
        return torch.full_like(outputs, 2)

    def sampled(
        self, module: Any, outputs: Tensor, targets: Any, count: int, draws: Draws
    ) -> Tensor:
        """``2 (y - f)`` with y drawn from the normal distribution of variance 1/2 around f."""
        return 2 * (draws.normal(outputs, 0.5**0.5, count) - outputs)
