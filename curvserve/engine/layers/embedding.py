"""``nn.Embedding``: a table look-up, linear in the table."""

import torch
from torch import Tensor, nn

from curvserve.engine.layers.base import LayerRule

__all__ = ["Embedding"]

_COMPARED = 256
"""The most positions of a sample of which each is compared with each."""


class Embedding(LayerRule):
    """``y_t = W[a_t]``: its row adds ``s_t`` to line ``a_t``, never to ``padding_idx``."""

    kinds = (nn.Embedding,)
    parameters = ("weight",)

    def objection(self, module: nn.Module) -> str | None:
        """Frequency scaling makes of ``p.grad`` something that is no derivative."""
        if module.scale_grad_by_freq:
            return "with scale_grad_by_freq=True its gradient is no derivative of the loss"
        return None

    def rows(self, module: nn.Module, name: str, a: Tensor, s: Tensor) -> Tensor:
        """See the base class; ``a`` holds indices ``[N, *]``, ``s`` is ``[N, *, D]``."""
        assert isinstance(module, nn.Embedding)
        samples, lines = len(s), module.num_embeddings
        sample = torch.arange(samples, device=a.device).unsqueeze(1)
        key = (sample * lines + a.reshape(samples, -1)).flatten()
        rows = s.new_zeros(samples * lines, s.shape[-1])
        rows.index_add_(0, key, _without_padding(module, a, s))
        return rows.reshape(samples, lines, -1)

    def square_sum(self, module: nn.Module, name: str, a: Tensor, s: Tensor) -> Tensor:
        """Forms only the lines that occur: memory grows with the tokens, not with the table."""
        assert isinstance(module, nn.Embedding)
        samples, lines = len(s), module.num_embeddings
        if a.numel() <= _COMPARED * samples:
            return _square_sum_of_few(module, a.reshape(samples, -1), s)
        sample = torch.arange(samples, device=a.device).unsqueeze(1)
        key = (sample * lines + a.reshape(samples, -1)).flatten()
        occurring, place = key.unique(return_inverse=True)
        rows = s.new_zeros(len(occurring), s.shape[-1])
        rows.index_add_(0, place, _without_padding(module, a, s))
        total = s.new_zeros(lines, s.shape[-1])
        return total.index_add_(0, occurring % lines, rows.square_())


def _square_sum_of_few(module: nn.Embedding, a: Tensor, s: Tensor) -> Tensor:
    """The same by comparing each token of a sample with each other: no shape depends on a value.

    A position holds the whole row of its token then. As many positions as have that token add its
    square, so each adds its part.
    """
    s = _without_padding(module, a, s)
    alike = (a.unsqueeze(2) == a.unsqueeze(1)).to(s.dtype)
    rows = alike @ s.reshape(*a.shape, s.shape[-1])
    parts = rows.square_() / alike.sum(-1, keepdim=True)
    return s.new_zeros(module.num_embeddings, s.shape[-1]).index_add_(
        0, a.flatten(), parts.flatten(0, 1)
    )


def _without_padding(module: nn.Embedding, a: Tensor, s: Tensor) -> Tensor:
    s = s.reshape(-1, s.shape[-1])
    if module.padding_idx is None:
        return s
    return s * (a.reshape(-1, 1) != module.padding_idx)
