"""``nn.GroupNorm``: linear in its scale and shift, given the normalised input."""

from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

from curvserve.engine.layers.channel_norm import ChannelNorm

__all__ = ["GroupNorm"]


class GroupNorm(ChannelNorm):
    """``y = w x + b`` by channel with x normalised over each group of channels.

    (Wu and He, Group normalization, ECCV 2018.)
    """

    kinds = (nn.GroupNorm,)

    def normalised(self, module: Any, a: Tensor) -> Tensor:
        """See the base class."""
        return F.group_norm(a, module.num_groups, eps=module.eps)
