"""Attention over short sequences by products of matrices: torch's fused kernel is slower on a CPU.

The fused kernel keeps no weights and computes them again in each pass backward, of which there
are two. It is the better one where they would not stay in the cache.
"""

from contextlib import AbstractContextManager, nullcontext
from types import FunctionType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

__all__ = ["ShortAttention", "attending"]

_LONGEST = 64
"""How long a sequence may be: see docs/decisions/0037."""


def attending(model: nn.Module, inputs: Tensor) -> AbstractContextManager[Any]:
    """A block in which a model runs forward and attends in the way that is faster.

    Without a pass backward torch's kernel is, and what torch compiled decides for itself.

    Args:
        model: The model.
        inputs: Its input.
    """
    plain = inputs.device.type == "cpu" and not _is_compiled(model)
    return ShortAttention() if torch.is_grad_enabled() and plain else nullcontext()


class ShortAttention(TorchFunctionMode):
    """A block in which short sequences attend to each other by products of matrices."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """Called instead of every function of torch inside the block."""
        kwargs = kwargs or {}
        if func is F.scaled_dot_product_attention:
            return _attention(*args, **kwargs)
        if func is F.multi_head_attention_forward:
            # what it calls is not seen by this mode again, and is not to be by those around it
            with torch._C.DisableTorchFunction():
                return _multi_head_attention(*args, **kwargs)
        return func(*args, **kwargs)


def _attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """``softmax(scale Q K^T) V``, as :func:`torch.nn.functional.scaled_dot_product_attention`."""
    if attn_mask is not None or dropout_p or enable_gqa or not _is_short(query, key, value):
        return F.scaled_dot_product_attention(
            query, key, value, attn_mask, dropout_p, is_causal, scale=scale, enable_gqa=enable_gqa
        )
    # sequences that are far apart in memory push each other out of the cache
    q, k, v = (t.contiguous().view(-1, *t.shape[-2:]) for t in (query, key, value))
    scores = torch.bmm(q * (q.shape[-1] ** -0.5 if scale is None else scale), k.mT)
    if is_causal:
        later = torch.ones(scores.shape[1:], dtype=torch.bool, device=q.device).triu(1)
        scores = scores.masked_fill(later, -torch.inf)
    return torch.bmm(scores.softmax(-1), v).view(*query.shape[:-1], value.shape[-1])


def _is_compiled(model: nn.Module) -> bool:
    """Whether torch compiled a model, or a module in it, which it holds by this name."""
    return any("_orig_mod" in vars(module)["_modules"] for module in model.modules())


def _is_short(query: Tensor, key: Tensor, value: Tensor) -> bool:
    usual = query.device.type == "cpu" and query.dtype in (torch.float32, torch.float64)
    alike = query.shape[:-2] == key.shape[:-2] == value.shape[:-2] and query.dim() > 2
    lengths = query.shape[-2], key.shape[-2]
    return usual and alike and query.numel() > 0 and 0 < min(lengths) <= max(lengths) <= _LONGEST


_multi_head_attention = FunctionType(
    F.multi_head_attention_forward.__code__,
    {**vars(F), "scaled_dot_product_attention": _attention},
    argdefs=F.multi_head_attention_forward.__defaults__,
)
"""Torch's own, with this attention in the place of torch's."""
