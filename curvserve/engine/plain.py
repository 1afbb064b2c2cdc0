"""Operations of torch written out, whose own second derivative is wrong or missing."""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from curvserve.engine.layers.embedding_bag import bag_weights

__all__ = ["PlainOperations"]


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
        if func is F.embedding_bag:
            return _largest(*args, **kwargs) if kwargs["mode"] == "max" else _sums(*args, **kwargs)
        return func(*args, **kwargs)


def _sums(input: Tensor, weight: Tensor, **options: Any) -> Tensor:
    """Without the options that change the table beforehand, or how its gradient is kept."""
    for option in ("max_norm", "norm_type", "scale_grad_by_freq", "sparse"):
        del options[option]
    return bag_weights(input, weight, **options) @ weight


def _largest(input: Tensor, weight: Tensor, **options: Any) -> Tensor:
    """Looks up the lines in which torch finds the largest; an empty bag has none and is zero."""
    offsets = options["offsets"]
    if offsets is None:
        offsets = torch.arange(0, input.numel(), input.shape[1], device=input.device)
    rest = False, None, options["include_last_offset"], options["padding_idx"]
    with torch.no_grad():
        _, _, sizes, lines = torch.embedding_bag(weight, input.flatten(), offsets, False, 2, *rest)
    return weight.gather(0, lines) * (sizes > 0).unsqueeze(1)
