"""``nn.LayerNorm``: linear in its scale and shift, given the normalised input."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from curvserve.engine.layers.base import LayerRule

__all__ = ["LayerNorm"]


class LayerNorm(LayerRule):
    """``y = w * x + b`` with x the normalised input: the row for w is ``sum_t s_t * x_t``."""

    kinds = (nn.LayerNorm,)

    def rows(self, module: nn.Module, name: str, a: Tensor, s: Tensor) -> Tensor:
        """See the base class; ``a`` and ``s`` are ``[N, *, *normalized_shape]``."""
        return self._summed(module, s if name == "bias" else s * self._normalised(module, a))

    def square_sums(
        self, module: nn.Module, name: str, a: Tensor, columns: Sequence[Tensor]
    ) -> Tensor:
        """See the base class; the input is normalised once."""
        x = None if name == "bias" else self._normalised(module, a)
        scaled = (s if x is None else s * x for s in columns)
        return torch.stack([self._summed(module, s).square_().sum(0) for s in scaled]).sum(0)

    def _normalised(self, module: Any, a: Tensor) -> Tensor:
        return F.layer_norm(a, module.normalized_shape, eps=module.eps)

    def _summed(self, module: Any, s: Tensor) -> Tensor:
        extra = tuple(range(1, s.dim() - len(module.normalized_shape)))
        return s.sum(extra) if extra else s.clone()
