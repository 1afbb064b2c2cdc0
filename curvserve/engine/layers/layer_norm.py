"""``nn.LayerNorm``: linear in its scale and shift, given the normalised input."""

from torch import Tensor, nn
from torch.nn import functional as F

from curvserve.engine.layers.base import LayerRule

__all__ = ["LayerNorm"]


class LayerNorm(LayerRule):
    """``y = w * x + b`` with x the normalised input: the row for w is ``sum_t s_t * x_t``."""

    kinds = (nn.LayerNorm,)

    def rows(self, module: nn.Module, name: str, a: Tensor, s: Tensor) -> Tensor:
        """See the base class; ``a`` and ``s`` are ``[N, *, *normalized_shape]``."""
        assert isinstance(module, nn.LayerNorm)
        if name == "weight":
            s = s * F.layer_norm(a, module.normalized_shape, eps=module.eps)
        extra = tuple(range(1, s.dim() - len(module.normalized_shape)))
        return s.sum(extra) if extra else s.clone()
