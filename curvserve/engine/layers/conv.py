"""``nn.Conv1d``, ``nn.Conv2d`` and ``nn.Conv3d`` with every option."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, einsum, nn
from torch.nn import functional as F

from curvserve.engine import native, results
from curvserve.engine.layers import contractions
from curvserve.engine.layers.base import LayerRule
from curvserve.engine.rows import Matrices

__all__ = ["Conv"]

_PATCHES = {"cpu": 4 << 20, "cuda": 64 << 20}
"""The bytes that the patches of one chunk may take: they are written once and read once."""


class Conv(LayerRule):
    """A convolution is a linear layer on patches: the row for W is ``sum_l s_l patch_l^T``."""

    kinds = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
    batched: ClassVar[bool] = True

    def axes(self, module: Any) -> int:
        """Batch, channels, space."""
        return 2 + len(module.kernel_size)

    def rows(self, module: Any, name: str, a: Tensor, s: Tensor) -> Tensor:
        """See the base class; ``a`` is ``[N, K, C, *space]``, ``s`` is ``[N, K, O, *space']``."""
        if name == "bias":
            return s.flatten(3).sum((1, 3))
        window = _Window.of(module, a, s)
        patches = window.patches(a.flatten(0, 1)).unflatten(0, s.shape[:2])
        s = s.flatten(3).unflatten(2, (module.groups, -1))
        found = einsum("ntgol,ntlkgc->ngock", s, patches.unflatten(-1, (module.groups, -1)))
        return window.whole(found.flatten(1, 2))

    def square_sum(self, module: Any, name: str, a: Tensor, s: Tensor) -> Tensor:
        """See the base class."""
        if name == "bias" or module.groups > 1:
            return super().square_sum(module, name, a, s)
        return self.square_sums(module, name, a, [s])

    def square_sums(self, module: Any, name: str, a: Tensor, columns: Sequence[Tensor]) -> Tensor:
        """By the way that the sizes ask for; see :mod:`.contractions`."""
        if name == "bias" or module.groups > 1:
            return super().square_sums(module, name, a, columns)
        s = columns[0]
        window = _Window.of(module, a, s)
        positions = s.numel() // max(1, s.shape[0] * s.shape[2])
        if contractions.by_tiles(a, positions):
            outputs = [_positions(s) for s in columns]
            total = native.square_sum(window.seen(a), outputs, len(s.shape) - 2)
        else:
            total = _by_patches(window, a, columns, positions)
        return window.whole(total.unflatten(1, (window.size, -1)).mT.unsqueeze(0)).squeeze(0)

    def matrices(self, module: Any, name: str, a: Tensor, s: Tensor) -> Matrices | None:
        """The patches, and the cotangents at the positions they belong to (without groups)."""
        if name == "bias" or module.groups > 1:
            return None
        patches = _Window.of(module, a, s, whole=True).inputs(a)
        # they are [*kernel, C], and the weight has [C, *kernel]
        entries = torch.arange(patches.shape[2], device=a.device)
        order = entries.unflatten(0, (-1, a.shape[2])).T.flatten()
        return Matrices(patches, _positions(s), order)


def _by_patches(window: "_Window", a: Tensor, columns: Sequence[Tensor], positions: int) -> Tensor:
    """A few samples' patches at a time."""
    inputs = window.size * a.shape[2]
    size = contractions.at_a_time(inputs * positions * a.element_size(), a, _PATCHES)
    total = a.new_zeros(columns[0].shape[2], inputs)
    for a_chunk, *chunks in zip(a.split(size), *(s.split(size) for s in columns), strict=True):
        outputs = [_positions(chunk) for chunk in chunks]
        total += contractions.square_sum(window.inputs(a_chunk), outputs)
    return total


@dataclass(frozen=True)
class _Window:
    """The part of a kernel that ever sees the input; the rest lies on padding at all positions.

    Attributes:
        module: The convolution.
        first: For each axis the first of its taps.
        count: How many taps there are on each axis.
        pads: The padding that is left, as ``F.pad`` takes it for an input with channels last.
    """

    module: Any
    first: Sequence[int]
    count: Sequence[int]
    pads: Sequence[int]

    @classmethod
    def of(cls, module: Any, a: Tensor, s: Tensor, *, whole: bool = False) -> "_Window":
        """The window of a layer at an input ``[N, K, C, *space]``; ``whole`` for every tap."""
        reach = _every_tap if whole or module.padding_mode != "zeros" else _taps
        sizes = zip(
            module.kernel_size,
            module.dilation,
            module.stride,
            _pairs(module._reversed_padding_repeated_twice),
            a.shape[3:],
            s.shape[3:],
            strict=True,
        )
        axes = [reach(*axis) for axis in sizes]
        pads = [pad for axis in reversed(axes) for pad in axis[2]]
        return cls(module, [axis[0] for axis in axes], [axis[1] for axis in axes], pads)

    @property
    def size(self) -> int:
        """How many taps there are."""
        total = 1
        for count in self.count:
            total *= count
        return total

    def patches(self, a: Tensor) -> Tensor:
        """What each position sees of inputs ``[N, C, *space]``: ``[N, positions, taps, C]``."""
        space = len(self.count)
        # [N, *positions, C, *taps] -> [N, *positions, *taps, C]
        written = _written(self._seen(a).movedim(1 + space, -1))
        return written.flatten(1 + space, -2).flatten(1, space)

    def inputs(self, a: Tensor) -> Tensor:
        """Inputs ``[N, K, C, *space]`` as those of a linear layer, ``[N, T, taps * C]``."""
        if a.shape[1] == a.shape[2] == 1:
            return self._of_one_map(a)
        patches: Tensor = self.patches(a.flatten(0, 1)).unflatten(0, a.shape[:2])
        return patches.flatten(3).flatten(1, 2)

    def seen(self, a: Tensor) -> Tensor:
        """The same as a view ``[N, K, *positions, *taps, C]`` of memory with channels last."""
        padded = self._padded(a.flatten(0, 1)).contiguous()
        view = self._unfolded(padded).movedim(1 + len(self.count), -1)
        return view.reshape(*a.shape[:2], *view.shape[1:])

    def _of_one_map(self, a: Tensor) -> Tensor:
        """The same of one map, tap by tap in memory: its lines are copied, not single numbers."""
        space = len(self.count)
        seen = self._seen(a.squeeze(1)).squeeze(1 + space)
        taps_first = seen.permute(0, *range(1 + space, 1 + 2 * space), *range(1, 1 + space))
        written = _written(taps_first)
        return written.flatten(1 + space).flatten(1, space).mT

    def _seen(self, a: Tensor) -> Tensor:
        """Inputs ``[N, C, *space]``, padded, as a view ``[N, *positions, C, *taps]``."""
        return self._unfolded(self._padded(a))

    def _padded(self, a: Tensor) -> Tensor:
        """Inputs ``[N, C, *space]`` with their padding, ``[N, *space, C]``."""
        if any(self.pads):
            mode = "constant" if self.module.padding_mode == "zeros" else self.module.padding_mode
            a = F.pad(a, self.pads, mode=mode) if min(self.pads) >= 0 else F.pad(a, self.pads)
        return a.movedim(1, -1)

    def _unfolded(self, a: Tensor) -> Tensor:
        options = zip(self.count, self.module.dilation, self.module.stride, strict=True)
        for axis, (size, gap, step) in enumerate(options, start=1):
            a = a.unfold(axis, gap * (size - 1) + 1, step)[..., ::gap]
        return a

    def whole(self, found: Tensor) -> Tensor:
        """Rows ``[N, O, C, taps]`` in the shape of the weight, zero where no input is seen."""
        found = found.unflatten(-1, list(self.count))
        kernel = self.module.kernel_size
        if tuple(self.count) == tuple(kernel):
            return found.contiguous()
        complete = found.new_zeros(*found.shape[:3], *kernel)
        places: Any = [slice(f, f + c) for f, c in zip(self.first, self.count, strict=True)]
        complete[(..., *places)] = found
        return complete


def _written(view: Tensor) -> Tensor:
    """Several times as large as the input: in memory that is used again."""
    return results.empty(view.shape, view).copy_(view)


def _positions(s: Tensor) -> Tensor:
    """Cotangents ``[N, K, O, *space]`` as those of a linear layer, ``[N, T, O]``."""
    last = s.movedim(2, -1)  # a view of what it is, where the channels lie last already
    s = last.flatten(2, -2) if last.is_contiguous() else s.flatten(3).mT
    return s.flatten(1, 2)


Axis = tuple[int, int, tuple[int, int]]
"""First tap, number of taps, and the padding before and behind that they still reach."""


def _every_tap(
    kernel: int, gap: int, step: int, pads: tuple[int, int], length: int, positions: int
) -> Axis:
    return 0, kernel, pads


def _taps(
    kernel: int, gap: int, step: int, pads: tuple[int, int], length: int, positions: int
) -> Axis:
    """The taps k for which ``step * t + gap * k`` lies in the input at some position t."""
    before, last = pads[0], step * (positions - 1)
    seen = [
        k
        for k in range(kernel)
        if any(0 <= step * t + gap * k - before < length for t in range(positions))
    ]
    if not seen:
        return 0, kernel, pads
    first, count = seen[0], seen[-1] - seen[0] + 1
    left = before - gap * first
    right = last + gap * (first + count - 1) + 1 - before - length
    return first, count, (left, right)


def _pairs(flat: Sequence[int]) -> list[tuple[int, int]]:
    """Paddings as ``F.pad`` takes them, last axis first, as one pair for each axis in order."""
    return list(zip(flat[::2], flat[1::2], strict=True))[::-1]
