"""``nn.MSELoss`` of any shape."""

import torch
from torch import Tensor, nn

from curvserve.engine.errors import UnsupportedLossError
from curvserve.engine.losses.base import Draws, LossRule

__all__ = ["MSE"]


class MSE(LossRule):
    """Squared error: each element is a term of its own with Hessian 2."""

    kinds = (nn.MSELoss,)

    def check(self, module: nn.Module, outputs: Tensor, targets: Tensor) -> None:
        """Refuses targets that would be broadcast: the elements would not be the terms."""
        if outputs.shape != targets.shape:
            raise UnsupportedLossError(
                f"MSELoss needs targets of the output's shape {tuple(outputs.shape)}, "
                f"got {tuple(targets.shape)}"
            )

    def norm(self, module: nn.Module, outputs: Tensor, targets: Tensor) -> float:
        """The number of elements."""
        return 1.0 if module.reduction == "sum" else float(outputs.numel())

    def exact(self, module: nn.Module, outputs: Tensor, targets: Tensor) -> Tensor:
        """The constant ``sqrt(2)``."""
        return torch.full_like(outputs, 2**0.5).unsqueeze(0)

    def sampled(
        self, module: nn.Module, outputs: Tensor, targets: Tensor, count: int, draws: Draws
    ) -> Tensor:
        """``2 (y - f)`` with y drawn from the normal distribution of variance 1/2 around f."""
        return 2 * (draws.normal(outputs, 0.5**0.5, count) - outputs)
