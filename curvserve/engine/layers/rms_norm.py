"""``nn.RMSNorm``: linear in its scale, given the normalised input."""

from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

from curvserve.engine.layers.base import LayerRule

__all__ = ["RMSNorm"]


class RMSNorm(LayerRule):
    """``y = w * x`` with x the input over its root mean square: the row is ``sum_t s_t * x_t``.

    (Zhang and Sennrich, Root mean square layer normalization, NeurIPS 2019.)
    """

    kinds = (nn.RMSNorm,)
    parameters = ("weight",)

    def rows(self, module: Any, name: str, a: Tensor, s: Tensor) -> Tensor:
        """See the base class; ``a`` and ``s`` are ``[N, *, *normalized_shape]``."""
        s = s * F.rms_norm(a, module.normalized_shape, eps=module.eps)
        extra = tuple(range(1, s.dim() - len(module.normalized_shape)))
        return s.sum(extra) if extra else s
