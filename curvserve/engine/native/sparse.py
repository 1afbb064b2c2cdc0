"""Products with cotangents that are mostly zero, which leave out the zeros: ``sparse.c``.

Behind a pool of two by two a quarter of a map's cotangents is not zero, and behind a rectifier half
of them. What a layer of patches makes of them, sums over its inputs or over its weights, then takes
that part of the time.
"""

import ctypes
import math
from collections.abc import Sequence
from functools import cache, lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

from curvserve.engine.native import library, passes

__all__ = ["Image", "pays", "row_sum", "spread"]

_TASKS = 16
"""How many tasks there are at least, for as many threads."""

_WIDEST, _SIDE = 9, 16  # as sparse.c has them
_NARROWEST = 4
"""Vectors of a strip below which sums wait for each other."""

_WEIGHTS = 24 << 10
"""Bytes of a strip of the weights, which is to stay in the first-level cache."""

_LISTED, _FARTHEST = 4096, 1 << 30
"""Positions of a sample whose lists stay in the second-level cache; how far 32 bits reach."""

_LEAST = 1 << 20
"""Multiplications of a dense product that are worth a look."""

_LOOKED_AT, _FEWEST = 64, 1 / 16
"""Positions by which it is judged how much is not zero, and the least that is hoped for."""

_BESIDE = 3
"""Vectors that could be added up in the time that it takes to list a number."""

_AGAIN = 4
"""Vectors that could be added up in the time that it takes to fetch sums or weights anew."""

_PAYS = 0.6
"""Vectors added up, over those of a dense product, below which the dense one takes longer."""


class _Work(ctypes.Structure):
    _fields_ = [
        *((name, ctypes.c_int64) for name in ("samples", "length", "inputs", "outputs")),
        *((name, ctypes.c_int64) for name in ("columns", "vectors", "strips", "groups")),
        *((name, ctypes.c_int64) for name in ("squared", "image_step", "sample_step")),
        *((name, ctypes.c_int64) for name in ("line_step", "extent")),
        *((name, ctypes.c_int64) for name in ("lines", "line", "first_line", "from_line")),
        *((name, ctypes.c_void_p) for name in ("positions", "places", "widths", "ranks")),
        *((name, ctypes.c_void_p) for name in ("images", "cotangents", "totals", "sums")),
        ("result", ctypes.c_void_p),
        ("team", library.Team),
    ]


class _Kernel(NamedTuple):
    rows: Any
    spread: Any
    count: Any
    lanes: Any
    scratch: Any


@cache
def _kernel() -> _Kernel:
    number, size, work = ctypes.c_int, ctypes.c_int64, ctypes.POINTER(_Work)
    return _Kernel(
        library.function("sparse_rows", None, work, number, number),
        library.function("sparse_spread", None, work, number, number),
        library.function("sparse_count", size, ctypes.c_void_p, *[size] * 6, number, number),
        library.function("sparse_lanes", size, number, number),
        library.function("sparse_scratch", size, work, number),
    )


class _Patches(NamedTuple):
    """How patches lie in an image, in vectors.

    Attributes:
        positions: How far from the first number of the image each patch begins.
        places: How far from there each vector does.
        widths: How many of a vector's numbers belong to the patch.
        ranks: Which of the patch's inputs the first of them is.
        inputs: How many there are.
        extent: From the image's first number to behind the last that a patch has.
    """

    positions: library.Numbers
    places: library.Numbers
    widths: library.Numbers
    ranks: library.Numbers
    inputs: int
    extent: int


class Image(NamedTuple):
    """What is wanted of an image that patches are laid over, whose rest is padding.

    Attributes:
        extent: How many numbers it has.
        lines: How many lines are wanted.
        line: How many numbers of each.
        first: Where the first of them begins.
        step: How far it is from one to the next.
    """

    extent: int
    lines: int
    line: int
    first: int
    step: int


def pays(s: Tensor, shape: Sequence[int], steps: Sequence[int], axes: int) -> bool:
    """Whether cotangents have zeros enough for the products below, going by some of them.

    See docs/decisions/0040 for what each of the numbers above was measured by.

    Args:
        s: The cotangents, ``[N, T, O]``, without gaps between outputs.
        shape: How many positions there are on each of some axes, then inputs of a position.
        steps: How far it is from one to the next.
        axes: How many axes the positions have.
    """
    samples, length, outputs = s.shape
    multiplications = s.numel() * math.prod(shape[axes:])
    if multiplications < _LEAST or length > _LISTED:
        return False
    patches = _patches(tuple(shape), tuple(steps), axes, _lanes(s))
    vectors = len(patches.places)
    dense = _PAYS * patches.inputs / _lanes(s) - _AGAIN * vectors / length
    if patches.extent > _FARTHEST or (vectors + _BESIDE) * _FEWEST > dense:
        return False
    lines = min(samples * length, _LOOKED_AT)
    sizes = samples, length, outputs, *s.stride()[:2], lines
    return (vectors + _BESIDE) * _count(s, *sizes) < dense * lines * outputs


def row_sum(
    seen: Tensor, columns: Sequence[Tensor], axes: int, *, squared: bool = False
) -> tuple[Tensor, Tensor] | None:
    """``sum_(n, v) S_vn^T A_n`` over samples and columns, or the sum of its squares; and of S.

    Args:
        seen: The inputs A as the positions see them, ``[N, *positions, *inputs]``: a view that may
            show one number in many places.
        columns: For each column v the cotangents S, ``[N, T, O]``, with as many positions, laid out
            alike and without gaps between outputs.
        axes: How many axes the positions have.
        squared: Whether the products are squared before they are added up.

    Returns:
        A tensor ``[O, K]`` of the K inputs of a position, in their order, and one ``[O]``, which
        is not squared. None where an input is not finite, which times zero is not zero.
    """
    patches = _patches(tuple(seen.shape[1:]), seen.stride()[1:], axes, _lanes(seen))
    samples, _, outputs = columns[0].shape
    span = (samples - 1) * seen.stride(0) + patches.extent
    if not passes.are_finite([seen.as_strided((span,), (1,))]):
        return None
    blocks = -(-outputs // _SIDE)
    groups = min(samples, -(-_TASKS // blocks))
    result, sums = seen.new_empty(outputs, patches.inputs), seen.new_empty(groups, outputs)
    totals = seen.new_empty(groups * outputs * len(patches.places) * _lanes(seen))
    _run(
        _kernel().rows, groups * blocks, columns, patches, _WIDEST, seen, totals, result,
        groups=groups, squared=squared, image_step=seen.stride(0), extent=patches.extent,
        sums=sums.data_ptr(),
    )  # fmt: skip
    return result, sums[0]


def spread(
    weight: Tensor, s: Tensor, shape: Sequence[int], steps: Sequence[int], image: Image
) -> Tensor | None:
    """For each sample ``sum_t W^T s_t``, laid over the patch of the position t in an image.

    Args:
        weight: W, ``[O, K]``, without gaps.
        s: The cotangents, ``[N, T, O]``, without gaps between outputs.
        shape: How many positions there are on each of two axes, then inputs.
        steps: How far it is from one to the next in the image.
        image: What of it is wanted.

    Returns:
        A tensor ``[N, lines, line]``; None where a weight is not finite.
    """
    if not passes.are_finite([weight]):
        return None
    patches = _patches(tuple(shape), tuple(steps), 2, _lanes(s))
    samples, _, outputs = s.shape
    result = s.new_empty(samples, image.lines, image.line)
    packed = s.new_empty(outputs * len(patches.places) * _lanes(s))
    breadth = _WEIGHTS // (outputs * _lanes(s) * s.element_size())
    breadth = min(max(_NARROWEST, breadth), _WIDEST)
    _run(
        _kernel().spread, samples, [s], patches, breadth, weight, packed, result,
        extent=image.extent, lines=image.lines, line=image.line,
        first_line=image.first, from_line=image.step,
    )  # fmt: skip
    return result


def _count(s: Tensor, *sizes: int) -> int:
    found: int = _kernel().count(s.data_ptr(), *sizes, *_which(s))
    return found


def _run(
    kernel: Any,
    tasks: int,
    columns: Sequence[Tensor],
    patches: _Patches,
    breadth: int,
    images: Tensor,
    totals: Tensor,
    result: Tensor,
    **more: int,
) -> None:
    """Calls a kernel with strips of at most a breadth."""
    (samples, length, outputs), (sample_step, line_step, _) = columns[0].shape, columns[0].stride()
    addresses = (ctypes.c_void_p * len(columns))(*(s.data_ptr() for s in columns))
    vectors = len(patches.places)
    work = _Work(
        samples=samples, length=length, inputs=patches.inputs, outputs=outputs,
        columns=len(columns), vectors=vectors, strips=-(-vectors // breadth),
        sample_step=sample_step, line_step=line_step,
        positions=ctypes.addressof(patches.positions), places=ctypes.addressof(patches.places),
        widths=ctypes.addressof(patches.widths), ranks=ctypes.addressof(patches.ranks),
        images=images.data_ptr(), cotangents=ctypes.addressof(addresses),
        totals=totals.data_ptr(), result=result.data_ptr(), **more,
    )  # fmt: skip
    bytes_each = _kernel().scratch(work, columns[0].dtype == torch.float64)
    work.team, _scratch = library.team(tasks, bytes_each)
    kernel(work, *_which(columns[0]))


@lru_cache(512)
def _patches(shape: Sequence[int], steps: Sequence[int], axes: int, lanes: int) -> _Patches:
    """How patches lie that are seen as ``[*positions, *inputs]`` with these steps between."""
    positions, inputs = (
        library.places(shape[:axes], steps[:axes]),
        library.places(shape[axes:], steps[axes:]),
    )
    vectors: list[list[int]] = []
    for rank, place in enumerate(inputs):
        if vectors and place == sum(vectors[-1][1:]) and vectors[-1][2] < lanes:
            vectors[-1][2] += 1
        else:
            vectors.append([rank, place, 1])
    if shape[-1] % lanes == 0:  # strips of the same channels touch a part of the image only
        vectors.sort(key=lambda vector: vector[0] % shape[-1])
    ranks, places, widths = (library.numbers([vector[i] for vector in vectors]) for i in range(3))
    extent = max(positions, default=0) + max(inputs, default=0) + 1
    return _Patches(library.numbers(positions), places, widths, ranks, len(inputs), extent)


def _lanes(like: Tensor) -> int:
    lanes: int = _kernel().lanes(*_which(like))
    return lanes


def _which(like: Tensor) -> tuple[bool, int]:
    return like.dtype == torch.float64, library.level(library.instructions() or "")
