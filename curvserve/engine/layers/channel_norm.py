"""What the norms with a scale and a shift for each channel have in common."""

from abc import abstractmethod
from typing import Any, ClassVar

from torch import Tensor

from curvserve.engine.layers.base import LayerRule

__all__ = ["ChannelNorm"]


class ChannelNorm(LayerRule):
    """``y = w x + b`` by channel, x the normalised input: the row for w is ``sum s x``."""

    batched: ClassVar[bool] = True

    @abstractmethod
    def normalised(self, module: Any, a: Tensor) -> Tensor:
        """The input ``[batch, C, *space]`` without scale and shift."""

    def rows(self, module: Any, name: str, a: Tensor, s: Tensor) -> Tensor:
        """See the base class; ``a`` and ``s`` are ``[N, K, C, *space]``."""
        if name == "weight":
            s = s * self.normalised(module, a.flatten(0, 1)).view(s.shape)
        return s.reshape(*s.shape[:3], -1).sum((1, 3))
