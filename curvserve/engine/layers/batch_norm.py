"""``nn.BatchNorm1d``, ``2d`` and ``3d`` in evaluation mode: a fixed scale and shift."""

from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

from curvserve.engine.layers.channel_norm import ChannelNorm

__all__ = ["BatchNorm"]


class BatchNorm(ChannelNorm):
    """``y = w x + b`` by channel with x normalised by the running statistics."""

    kinds = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)

    def covers(self, module: Any) -> bool:
        """Not with the statistics of the batch, which mix its samples."""
        return not module.training and module.running_mean is not None

    def normalised(self, module: Any, a: Tensor) -> Tensor:
        """See the base class."""
        return F.batch_norm(a, module.running_mean, module.running_var, eps=module.eps)
