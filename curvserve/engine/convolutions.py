"""Convolutions in passes backward, where most cotangents are zero: see :mod:`.native.sparse`.

Torch's convolution multiplies by zeros as by other numbers, and behind a pool they are three
quarters of all.
"""

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from curvserve.engine import native

__all__ = ["INPUTS", "sent_back"]

_BACKWARD = torch.ops.aten.convolution_backward.default


def sent_back(cotangent: Tensor, *, convolved: bool) -> AbstractContextManager[Any]:
    """A block in which cotangents are sent back, through convolutions without their zeros.

    Args:
        cotangent: One of them.
        convolved: Whether there are convolutions: what goes through here takes longer to call.
    """
    made: Any = _WithoutZeros  # whose base has no types
    return made() if convolved and native.admits(cotangent) else nullcontext()


class _WithoutZeros(TorchDispatchMode):
    """Calls the operators below in the place of torch's for images with their channels last."""

    supports_higher_order_operators = True

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """Called instead of every operation inside the block."""
        if func is _BACKWARD and not types and not kwargs and _is_usual(*args):
            return _each(*args)
        return func(*args, **(kwargs or {}))


def _is_usual(
    s: Tensor, a: Tensor, weight: Tensor, bias: Any, stride: Any, padding: Any, dilation: Any,
    transposed: bool, output_padding: Any, groups: int, wanted: Any,
) -> bool:  # fmt: skip
    images = a.dim() == 4 and len(a) == len(s) and groups == 1 and not transposed
    return images and native.admits(s) and s.dtype == a.dtype == weight.dtype and min(padding) >= 0


def _each(
    s: Tensor, a: Tensor, weight: Tensor, bias: Any, stride: Any, padding: Any, dilation: Any,
    transposed: bool, output_padding: Any, groups: int, wanted: Sequence[bool],
) -> tuple[Tensor | None, ...]:  # fmt: skip
    ours = torch.ops.curvserve
    # one number is meant for both axes, as of padding="valid"
    options = [list(o) * 2 if len(o) == 1 else o for o in (stride, padding, dilation)]
    inputs = ours.convolution_inputs(s, a, weight, *options) if wanted[0] else None
    both = (
        ours.convolution_weight(s, a, weight, *options) if wanted[1] or wanted[2] else (None,) * 2
    )
    return inputs, *(
        found if asked else None for found, asked in zip(both, wanted[1:], strict=True)
    )


def _inputs(s: Tensor, a: Tensor, weight: Tensor, *options: Sequence[int]) -> Tensor:
    lines, found = _lines(s), None
    image, shape, steps = _seen(s, a, weight, *options)
    if lines is not None and native.pays(lines, shape, steps, 2):
        taps_last = weight.permute(0, 2, 3, 1).reshape(len(weight), -1)
        found = native.spread(taps_last, lines, shape, steps, image)
    if found is None:
        return _by_torch(s, a, weight, options, (True, False, False))[0]
    return found.view(len(a), *a.shape[2:], a.shape[1]).permute(0, 3, 1, 2)


def _weight(s: Tensor, a: Tensor, weight: Tensor, *options: Sequence[int]) -> tuple[Tensor, Tensor]:
    lines, found = _lines(s), None
    image, shape, steps = _seen(s, a, weight, *options)
    if lines is not None and _is_last(a) and native.pays(lines, shape, steps, 2):
        (_, (high, wide), _) = options
        whole = a.permute(0, 2, 3, 1)
        whole = F.pad(whole, (0, 0, wide, wide, high, high)) if high or wide else whole
        seen = whole.as_strided((len(a), *shape), (image.extent, *steps))
        found = native.row_sum(seen, [lines], 2)
    if found is None:
        return _by_torch(s, a, weight, options, (False, True, True))[1:]
    rows = found[0].view(len(weight), *weight.shape[2:], -1).permute(0, 3, 1, 2)
    return torch.empty_like(weight).copy_(rows), found[1]


def _seen(
    s: Tensor, a: Tensor, weight: Tensor, *options: Sequence[int]
) -> tuple[native.Image, tuple[int, ...], tuple[int, ...]]:
    """The padded image of an input, and its shape and steps as the positions see it."""
    stride, (high, wide), dilation = options
    _, channels, height, width = a.shape
    line = (width + 2 * wide) * channels
    image = native.Image(
        (height + 2 * high) * line, height, width * channels, high * line + wide * channels, line
    )
    steps = [
        gap * step
        for gaps in (stride, dilation)
        for gap, step in zip(gaps, (line, channels), strict=True)
    ]
    return image, (*s.shape[2:], *weight.shape[2:], channels), (*steps, 1)


def _by_torch(
    s: Tensor, a: Tensor, weight: Tensor, options: Sequence[Sequence[int]], wanted: Sequence[bool]
) -> tuple[Tensor, Tensor, Tensor]:
    found: tuple[Tensor, Tensor, Tensor] = _BACKWARD(
        s, a, weight, [len(weight)], *options, False, [0, 0], 1, list(wanted)
    )
    return found


def _lines(s: Tensor) -> Tensor | None:
    """Cotangents ``[N, O, height, width]`` as ``[N, T, O]``, if their channels lie last."""
    return s.permute(0, 2, 3, 1).flatten(1, 2) if _is_last(s) else None


def _is_last(t: Tensor) -> bool:
    return t.permute(0, 2, 3, 1).is_contiguous()


def _inputs_shape(s: Tensor, a: Tensor, weight: Tensor, *options: Sequence[int]) -> Tensor:
    return torch.empty_like(a)


def _weight_shape(
    s: Tensor, a: Tensor, weight: Tensor, *options: Sequence[int]
) -> tuple[Tensor, Tensor]:
    return torch.empty_like(weight), weight.new_empty(len(weight))


_TAKES = "(Tensor s, Tensor a, Tensor weight, int[] stride, int[] padding, int[] dilation)"

_fragment = torch.library.Library("curvserve", "FRAGMENT")
_fragment.define(f"convolution_inputs{_TAKES} -> Tensor")
_fragment.define(f"convolution_weight{_TAKES} -> (Tensor, Tensor)")
_fragment.impl("convolution_inputs", _inputs, "CPU")
_fragment.impl("convolution_weight", _weight, "CPU")
_fragment.impl("convolution_inputs", _inputs_shape, "Meta")
_fragment.impl("convolution_weight", _weight_shape, "Meta")

INPUTS = torch.ops.curvserve.convolution_inputs.default
"""What the cotangents of a convolution's input are: memory of its own."""
