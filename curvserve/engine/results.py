"""Memory for large results, used again once nobody looks at them any more.

A fresh block of 100 MB costs 25,000 page faults, seven times what it takes to write it. What a
pass returned is mostly dropped before the next one returns the same again.
"""

import threading
from collections.abc import Sequence

import torch
from torch import Tensor

from curvserve.engine import context

__all__ = ["empty", "release"]

_LARGE = 1 << 20
_ALIGNMENT = 64  # what torch gives its own memory, and kernels are tuned for
_KEPT_CALLS = 64
"""How many other blocks are handed out before one that nobody uses is given back."""


class _Blocks:
    """Blocks that are free as soon as no tensor lies in them.

    A `bytearray` refuses to change its length while a memoryview of it lives, and the storage of
    every tensor in it holds one: so a block itself says whether it is free.
    """

    def __init__(self) -> None:
        self._blocks: list[tuple[bytearray, int]] = []
        self._calls = 0
        self._lock = threading.Lock()

    def take(self, size: int) -> memoryview:
        with self._lock:
            self._calls += 1
            free = [
                i
                for i, (block, _) in enumerate(self._blocks)
                if size <= len(block) <= 2 * size and _is_free(block)
            ]
            block = self._blocks.pop(free[0])[0] if free else bytearray(size)
            self._blocks = [
                (other, last)
                for other, last in self._blocks
                if self._calls - last < _KEPT_CALLS or not _is_free(other)
            ]
            self._blocks.append((block, self._calls))
            return memoryview(block)

    def release(self) -> None:
        with self._lock:
            self._blocks.clear()


_BLOCKS = _Blocks()


def empty(shape: Sequence[int], like: Tensor) -> Tensor:
    """A tensor of arbitrary content that a result is written to.

    Args:
        shape: Its shape.
        like: A tensor of its type, on its device.
    """
    count = torch.Size(shape).numel()
    if like.device.type != "cpu" or count * like.element_size() < _LARGE:
        return like.new_empty(shape)
    if context.is_tracing():  # what the program is to do each time
        made: Tensor = torch.ops.curvserve.empty(list(shape), like.dtype)
        return made
    return _empty(shape, like.dtype)


def release() -> None:
    """Gives the memory of results that were dropped back to the system."""
    _BLOCKS.release()


def _empty(shape: Sequence[int], dtype: torch.dtype) -> Tensor:
    size = torch.Size(shape).numel() * dtype.itemsize
    whole = torch.frombuffer(_BLOCKS.take(size + _ALIGNMENT), dtype=torch.uint8)
    start = -whole.data_ptr() % _ALIGNMENT
    return whole[start : start + size].view(dtype).view(*shape)


def _is_free(block: bytearray) -> bool:
    try:
        block.append(block.pop())  # one byte less and one more: neither moves the memory
    except BufferError:
        return False
    return True


_library = torch.library.Library("curvserve", "FRAGMENT")
_library.define("empty(int[] size, ScalarType dtype) -> Tensor")
_library.impl("empty", _empty, "CompositeExplicitAutograd")
