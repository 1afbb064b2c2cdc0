"""Operations of torch written out, where the second derivative of torch's own is wrong or missing."""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

__all__ = ["PlainOperations", "bag_weights"]


class PlainOperations(TorchFunctionMode):
    """Computes weight norm and bags of embeddings by operations that differentiate twice."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """Called instead of every function of torch inside the block."""
        kwargs = kwargs or {}
        if func is torch._weight_norm:
            v, g, *axis = args
            return g * v / torch.norm_except_dim(v, 2, *axis)
        if func is F.embedding_bag and kwargs.get("mode") != "max":
            return _embedding_bag(*args, **kwargs)
        return func(*args, **kwargs)


def _embedding_bag(input: Tensor, weight: Tensor, *args: Any, **options: Any) -> Tensor:
    return bag_weights(input, weight, *args, **options) @ weight


def bag_weights(
    input: Tensor,
    weight: Tensor,
    offsets: Tensor | None = None,
    max_norm: float | None = None,
    norm_type: float = 2,
    scale_grad_by_freq: bool = False,
    mode: str = "mean",
    sparse: bool = False,
    per_sample_weights: Tensor | None = None,
    include_last_offset: bool = False,
    padding_idx: int | None = None,
) -> Tensor:
    """How much each line of the table counts in each bag, ``[bags, lines]``.

    The arguments are those of ``torch.nn.functional.embedding_bag`` with the mode "sum" or "mean":
    its result is the product of this matrix and the table.
    """
    if offsets is None:
        bags, length = input.shape
        offsets = torch.arange(0, bags * length, length, device=input.device)
    elif include_last_offset:
        offsets = offsets[:-1]
    lines = input.flatten()
    counts = weight.new_ones(lines.shape, requires_grad=False)
    if per_sample_weights is not None:
        counts = per_sample_weights.flatten()
    if padding_idx is not None:
        counts = counts * (lines != padding_idx)
    place = torch.arange(len(lines), device=input.device)
    bag = torch.searchsorted(offsets.contiguous(), place, right=True) - 1
    total = weight.new_zeros(len(offsets), len(weight))
    total = total.index_put((bag, lines), counts, accumulate=True)
    if mode == "mean":
        total = total / total.sum(1, keepdim=True).clamp(min=1)
    return total
