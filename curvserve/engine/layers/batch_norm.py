"""``nn.BatchNorm2d`` and ``nn.BatchNorm3d`` in evaluation mode: a fixed scale and shift."""

from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

from curvserve.engine.layers.base import LayerRule

__all__ = ["BatchNorm"]


class BatchNorm(LayerRule):
    """``y = w x + b`` by channel with x normalised by the running statistics."""

    kinds = (nn.BatchNorm2d, nn.BatchNorm3d)

    def covers(self, module: Any) -> bool:
        """Not with the statistics of the batch, which mix its samples."""
        return not module.training and module.running_mean is not None

    def rows(self, module: Any, name: str, a: Tensor, s: Tensor) -> Tensor:
        """See the base class; ``a`` and ``s`` are ``[N, *, C, *space]``."""
        own = 3 if isinstance(module, nn.BatchNorm2d) else 4
        samples = len(s)
        if name == "weight":
            flat = a.reshape(-1, *a.shape[-own:])
            normal = F.batch_norm(flat, module.running_mean, module.running_var, eps=module.eps)
            s = s * normal.reshape(s.shape)
        return s.reshape(samples, -1, *s.shape[-own:]).flatten(3).sum((1, 3))
