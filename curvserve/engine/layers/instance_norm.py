"""``nn.InstanceNorm1d``, ``2d`` and ``3d`` with a scale and a shift."""

from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

from curvserve.engine.layers.channel_norm import ChannelNorm

__all__ = ["InstanceNorm"]


class InstanceNorm(ChannelNorm):
    """``y = w x + b`` by channel with x normalised over space, or by running statistics."""

    kinds = (nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d)

    def axes(self, module: Any) -> int:
        """Batch, channels, space."""
        return 3 + next(i for i, kind in enumerate(self.kinds) if isinstance(module, kind))

    def normalised(self, module: Any, a: Tensor) -> Tensor:
        """See the base class; running statistics are not moved."""
        if module.training or module.running_mean is None:
            return F.instance_norm(a, eps=module.eps)
        return F.batch_norm(a, module.running_mean, module.running_var, eps=module.eps)
