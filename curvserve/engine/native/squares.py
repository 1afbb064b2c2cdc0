"""The squared rows of a layer, summed, without a row ever written: ``squares.c``."""

import ctypes
from collections.abc import Sequence
from functools import cache, lru_cache
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor

from curvserve.engine.native import library, sparse

__all__ = ["square_sum"]

_TASKS = 16
"""How many tasks there are at least, for as many threads."""


class _Work(ctypes.Structure):
    _fields_ = [
        *((name, ctypes.c_int64) for name in ("samples", "length", "inputs", "outputs")),
        *((name, ctypes.c_int64) for name in ("columns", "segments", "groups")),
        *((name, ctypes.c_int64) for name in ("image_step", "sample_step", "line_step")),
        ("inputs_step", ctypes.c_int64),
        *((name, ctypes.c_void_p) for name in ("positions", "offsets", "lengths", "images")),
        *((name, ctypes.c_void_p) for name in ("cotangents", "totals", "result")),
        ("team", library.Team),
    ]


class _Kernel(NamedTuple):
    squares: Any
    breadth: Any
    scratch: Any


@cache
def _kernel() -> _Kernel:
    number, size = ctypes.c_int, ctypes.c_int64
    return _Kernel(
        library.function("squares", None, ctypes.POINTER(_Work), number, number),
        library.function("squares_breadth", size, number, number),
        library.function("squares_scratch", size, size, size, number, number),
    )


def square_sum(seen: Tensor, columns: Sequence[Tensor], axes: int) -> Tensor:
    """``sum_(n, v) (S_vn^T A_n)^2`` over samples and columns.

    Args:
        seen: The inputs A as the positions see them, ``[N, *positions, *inputs]``: a view that may
            show one number in many places.
        columns: For each column v the cotangents S, ``[N, T, O]``, with as many positions.
        axes: How many axes the positions have.

    Returns:
        A tensor ``[O, K]`` of the K inputs of a position, in their order.
    """
    found: Tensor = torch.ops.curvserve.square_sum(seen, list(columns), axes)
    return found


def _square_sum(seen: Tensor, columns: Sequence[Tensor], axes: int) -> Tensor:
    _check(seen, columns, axes)
    samples, length, outputs = columns[0].shape
    inputs = int(seen.shape[1 + axes :].numel())
    if not samples * length * outputs * inputs:
        return seen.new_zeros(outputs, inputs)
    steps = columns[0].stride()
    if steps[2] != 1 or any(s.stride() != steps for s in columns):
        columns = [s.contiguous() for s in columns]
        steps = columns[0].stride()
    if sparse.pays(columns[0], seen.shape[1:], seen.stride()[1:], axes):
        found = sparse.row_sum(seen, columns, axes, squared=True)
        if found is not None:
            return found[0]
    kernel, result = _kernel(), seen.new_empty(outputs, inputs)
    laid, inputs_step = _laid(seen.shape[1:], seen.stride()[1:], axes)
    which = seen.dtype == torch.float64, library.level(library.instructions() or "")
    breadth = kernel.breadth(*which)
    panels = -(-inputs // breadth)
    groups = min(samples, -(-_TASKS // panels))
    scratch = kernel.scratch(length, outputs, *which) * seen.element_size()
    team, _scratch = library.team(groups * panels, scratch)
    totals = seen.new_empty(groups * panels * breadth * outputs)
    addresses = (ctypes.c_void_p * len(columns))(*(s.data_ptr() for s in columns))
    work = _Work(
        samples, length, inputs, outputs, len(columns), len(laid[1]), groups,
        seen.stride(0), steps[0], steps[1], inputs_step, *map(ctypes.addressof, laid),
        seen.data_ptr(), ctypes.addressof(addresses), totals.data_ptr(), result.data_ptr(), team,
    )  # fmt: skip
    kernel.squares(work, *which)
    return result


@lru_cache(512)
def _laid(
    shape: Sequence[int], steps: Sequence[int], axes: int
) -> tuple[tuple[library.Numbers, library.Numbers, library.Numbers], int]:
    """How far from the first each position lies, and where a position's inputs do.

    The latter as runs of neighbours: offsets and lengths, in their order. Where there is one run,
    and positions lie evenly, the distance between two of these too; otherwise 0.
    """
    offsets: list[int] = []
    lengths: list[int] = []
    for place in library.places(shape[axes:], steps[axes:]):
        if offsets and place == offsets[-1] + lengths[-1]:
            lengths[-1] += 1
        else:
            offsets.append(place)
            lengths.append(1)
    positions = library.places(shape[:axes], steps[:axes])
    distances = {after - before for before, after in pairwise(positions)}
    step = distances.pop() if len(lengths) == len(distances) == 1 else 0
    return (library.numbers(positions), library.numbers(offsets), library.numbers(lengths)), step


def _check(seen: Tensor, columns: Sequence[Tensor], axes: int) -> None:
    """Refuses what the kernel would read past the end of."""
    given = [(s.dtype, (s.shape[0], s.shape[1])) for s in columns]
    wanted = (seen.dtype, (seen.shape[0], seen.shape[1 : 1 + axes].numel()))
    if any(each != wanted for each in given) or any(s.shape != columns[0].shape for s in columns):
        message = f"inputs {tuple(seen.shape)} of {seen.dtype}, {axes} axes of positions"
        shapes = ", ".join(f"{tuple(s.shape)} of {s.dtype}" for s in columns)
        raise ValueError(f"{message}, and cotangents {shapes}")


def _shape_only(seen: Tensor, columns: Sequence[Tensor], axes: int) -> Tensor:
    return seen.new_empty(columns[0].shape[2], seen.shape[1 + axes :].numel())


_fragment = torch.library.Library("curvserve", "FRAGMENT")
_fragment.define("square_sum(Tensor seen, Tensor[] columns, int axes) -> Tensor")
_fragment.impl("square_sum", _square_sum, "CPU")
_fragment.impl("square_sum", _shape_only, "Meta")
