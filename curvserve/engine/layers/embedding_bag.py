"""``nn.EmbeddingBag``: a linear layer on how much each line of the table counts in each bag."""

from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from curvserve.engine.layers import contractions
from curvserve.engine.layers.base import LayerRule
from curvserve.engine.layers.embedding import Embedding
from curvserve.engine.layers.linear import Linear, positions

__all__ = ["EmbeddingBag", "bag_weights"]


_LINEAR = Linear()


class EmbeddingBag(LayerRule):
    """``y = W^T a`` with the counts a: the row is ``a s^T``. Bags of equal length or by offsets."""

    kinds = (nn.EmbeddingBag,)
    parameters: ClassVar[tuple[str, ...]] = ("weight",)

    def covers(self, module: Any) -> bool:
        """Not the largest of each bag, which is no sum."""
        return bool(module.mode != "max")

    def objection(self, module: nn.Module) -> str | None:
        """See ``Embedding``."""
        return Embedding().objection(module)

    def input(self, module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
        """The counts, ``[N, lines]``."""
        names = ("input", "offsets", "per_sample_weights")
        return bag_weights(
            weight=module.weight,
            mode=module.mode,
            include_last_offset=module.include_last_offset,
            padding_idx=module.padding_idx,
            **(dict(zip(names, args, strict=False)) | kwargs),
        )

    def rows(self, module: nn.Module, name: str, a: Tensor, s: Tensor) -> Tensor:
        """See the base class; ``a`` is ``[N, *, lines]``, ``s`` is ``[N, *, D]``."""
        return _LINEAR.rows(module, name, a, s).mT

    def square_sum(self, module: nn.Module, name: str, a: Tensor, s: Tensor) -> Tensor:
        """See the base class."""
        return contractions.square_sum(positions(a), [positions(s)]).mT


def bag_weights(
    input: Tensor,
    weight: Tensor,
    offsets: Tensor | None = None,
    mode: str = "mean",
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
    lines = input.flatten()
    counts = weight.new_ones(lines.shape)
    if per_sample_weights is not None:
        counts = per_sample_weights.flatten()
    if padding_idx is not None:
        counts = counts * (lines != padding_idx)
    place = torch.arange(len(lines), dtype=offsets.dtype, device=input.device)
    bag = torch.searchsorted(offsets.contiguous(), place, right=True) - 1
    total = weight.new_zeros(len(offsets), len(weight))
    total = total.index_put((bag, lines), counts, accumulate=True)
    if include_last_offset:
        total = total[:-1]
    return total / total.sum(1, keepdim=True).clamp(min=1) if mode == "mean" else total
