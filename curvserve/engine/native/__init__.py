"""A kernel of our own: the squared rows of a layer, summed, without a row ever written.

``squares.c`` is compiled when the package is installed, wherever there is a C compiler. Where there
was none, :func:`instructions` is None and everything is computed by torch, as before. No header of
torch goes into it: tensors are handed over as addresses, and threads are those of the OpenMP
library that torch itself uses.
"""

import ctypes
from collections.abc import Sequence
from functools import cache, lru_cache
from importlib.machinery import EXTENSION_SUFFIXES
from itertools import product
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

__all__ = ["admits", "instructions", "square_sum"]

_TASKS = 16
"""How many tasks there are at least, for as many threads."""

_INSTRUCTIONS = ("AVX2", "AVX512")
"""How the names begin that torch has for what it may use; ``ATEN_CPU_CAPABILITY`` forbids some."""


class _Work(ctypes.Structure):
    _fields_ = [
        *((name, ctypes.c_int64) for name in ("samples", "length", "inputs", "outputs")),
        *((name, ctypes.c_int64) for name in ("columns", "segments", "groups", "threads")),
        *((name, ctypes.c_int64) for name in ("image_step", "sample_step", "line_step")),
        ("scratch_bytes", ctypes.c_int64),
        *((name, ctypes.c_void_p) for name in ("positions", "offsets", "lengths", "images")),
        *((name, ctypes.c_void_p) for name in ("cotangents", "totals", "result", "scratch")),
        *((name, ctypes.c_void_p) for name in ("parallel", "thread")),
    ]


@cache
def _library() -> ctypes.CDLL | None:
    for suffix in EXTENSION_SUFFIXES:
        path = Path(__file__).with_name(f"_squares{suffix}")
        if path.exists():
            library = ctypes.CDLL(str(path))
            library.squares.argtypes = [ctypes.POINTER(_Work), ctypes.c_int, ctypes.c_int]
            library.squares.restype = None
            library.squares_breadth.argtypes = [ctypes.c_int, ctypes.c_int]
            library.squares_breadth.restype = ctypes.c_int64
            library.squares_scratch.argtypes = [*[ctypes.c_int64] * 2, ctypes.c_int, ctypes.c_int]
            library.squares_scratch.restype = ctypes.c_int64
            return library
    return None


@cache
def _openmp() -> tuple[int | None, int | None]:
    """Where torch's OpenMP starts threads, as GCC's code asks it to, and tells which one runs."""
    process: Any = ctypes.CDLL(None)
    try:
        found = process.GOMP_parallel, process.omp_get_thread_num
    except AttributeError:
        return None, None
    parallel, thread = (ctypes.cast(each, ctypes.c_void_p).value for each in found)
    return parallel, thread


@cache
def instructions() -> str | None:
    """What the kernel computes with, by torch's name; None where it was not compiled."""
    return None if _library() is None else torch.backends.cpu.get_cpu_capability()


def admits(tensor: Tensor) -> bool:
    """Whether the kernel computes on this device and with these numbers."""
    usual = tensor.dtype in (torch.float32, torch.float64)
    return usual and tensor.device.type == "cpu" and instructions() is not None


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
    first, library = columns[0], _library()
    assert library is not None
    _check(seen, columns, axes)
    samples, length, outputs = first.shape
    laid = _laid(seen.shape[1:], seen.stride()[1:], axes)
    inputs = int(seen.shape[1 + axes :].numel())
    result = seen.new_empty(outputs, inputs)
    if not samples * length * outputs * inputs:
        return result.zero_()
    steps = first.stride()
    if steps[2] != 1 or any(s.stride() != steps for s in columns):
        columns = [s.contiguous() for s in columns]
        steps = columns[0].stride()
    which = seen.dtype == torch.float64, _level(instructions() or "")
    breadth = library.squares_breadth(*which)
    panels = -(-inputs // breadth)
    groups = min(samples, -(-_TASKS // panels))
    parallel, thread = _openmp()
    threads = 1 if parallel is None else min(torch.get_num_threads(), groups * panels)
    scratch = library.squares_scratch(length, outputs, *which)
    totals = seen.new_empty(groups * panels * breadth * outputs)
    scratches = seen.new_empty(threads, scratch)
    addresses = (ctypes.c_void_p * len(columns))(*(s.data_ptr() for s in columns))
    work = _Work(
        samples, length, inputs, outputs, len(columns), len(laid[1]), groups, threads,
        seen.stride(0), steps[0], steps[1], scratch * seen.element_size(),
        *map(ctypes.addressof, laid), seen.data_ptr(),
        ctypes.addressof(addresses), totals.data_ptr(), result.data_ptr(), scratches.data_ptr(),
        parallel, thread,
    )  # fmt: skip
    library.squares(work, *which)
    return result


def _level(name: str) -> int:
    known = [i for i, begins in enumerate(_INSTRUCTIONS, start=1) if name.startswith(begins)]
    return max(known, default=0)


_Numbers = ctypes.Array[ctypes.c_int64]


@lru_cache(64)
def _laid(
    shape: Sequence[int], steps: Sequence[int], axes: int
) -> tuple[_Numbers, _Numbers, _Numbers]:
    """How far from the first each position lies, and where a position's inputs do.

    The latter as runs of neighbours: offsets and lengths, in their order.
    """
    offsets: list[int] = []
    lengths: list[int] = []
    for place in _places(shape[axes:], steps[axes:]):
        if offsets and place == offsets[-1] + lengths[-1]:
            lengths[-1] += 1
        else:
            offsets.append(place)
            lengths.append(1)
    return _numbers(_places(shape[:axes], steps[:axes])), _numbers(offsets), _numbers(lengths)


def _places(shape: Sequence[int], steps: Sequence[int]) -> list[int]:
    each = [[i * step for i in range(size)] for size, step in zip(shape, steps, strict=True)]
    return list(map(sum, product(*each)))


def _numbers(values: Sequence[int]) -> _Numbers:
    return (ctypes.c_int64 * len(values))(*values)


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
