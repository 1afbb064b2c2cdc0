"""Passes over all parameters of a step at once: ``passes.c``.

Torch makes several over one parameter after another, each with a call for itself and most with a
result that nobody wants.
"""

import ctypes
import math
from collections.abc import Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor

from curvserve.engine.native import library

__all__ = ["are_finite", "distance", "divided", "fit"]

_DISTANCE, _IMPROPER, _DIVIDED = range(3)  # as passes.c has them in its table

_FOR_A_THREAD = 1 << 16
"""Numbers for which it is worth to wake a thread."""


class _Work(ctypes.Structure):
    _fields_ = [
        *((name, ctypes.c_int64) for name in ("tensors", "chunks", "threads")),
        *((name, ctypes.c_void_p) for name in ("sizes", "first", "second", "third", "result")),
        ("sums", ctypes.c_void_p),
        *((name, ctypes.c_double) for name in ("factor", "shift")),
        ("parallel", ctypes.c_void_p),
    ]


@cache
def _kernel() -> tuple[Any, Any]:
    number, size = ctypes.c_int, ctypes.c_int64
    passes = library.function(
        "passes", ctypes.c_double, ctypes.POINTER(_Work), number, number, number
    )
    return passes, library.function("passes_chunks", size, size)


def fit(*lists: Sequence[Tensor]) -> bool:
    """Whether the passes go over these tensors.

    All have to be of one type that the kernels know, without gaps in memory, and those that stand
    at the same place of the lists laid out alike.

    Args:
        lists: Of equal length.
    """
    first = lists[0]
    if not first or not library.admits(first[0]):
        return False
    kind, device = first[0].dtype, first[0].device
    return all(
        tensor.dtype == kind
        and tensor.device == device
        and (tensor.is_contiguous() or tensor.is_contiguous(memory_format=torch.channels_last))
        for tensors in lists
        for tensor in tensors
    ) and all(
        tensor.shape == same.shape and tensor.stride() == same.stride()
        for tensors in lists[1:]
        for tensor, same in zip(tensors, first, strict=True)
    )


def are_finite(tensors: Sequence[Tensor]) -> bool:
    """Whether all numbers of tensors that :func:`fit` are finite."""
    return _run(_IMPROPER, tensors) == 0


def distance(x: Sequence[Tensor], y: Sequence[Tensor]) -> float:
    """``sqrt(sum (x - y)^2)`` over all tensors, which :func:`fit`, added up in float64.

    Not finite where a difference is not.
    """
    return math.sqrt(_run(_DISTANCE, x, y))


def divided(
    p: Sequence[Tensor], g: Sequence[Tensor], h: Sequence[Tensor], factor: float, shift: float
) -> list[Tensor]:
    """``p + factor * g / (h + shift)`` of tensors that :func:`fit`.

    It has the bits of ``torch.addcdiv(p, g, h + shift, value=factor)``.
    """
    results = [torch.empty_like(each) for each in p]
    _run(_DIVIDED, p, g, h, results, factor=factor, shift=shift)
    return results


def _run(which: int, *lists: Sequence[Tensor], factor: float = 0.0, shift: float = 0.0) -> float:
    passes, chunks_of = _kernel()
    first = lists[0]
    sizes = [tensor.numel() for tensor in first]
    chunks = sum(map(chunks_of, sizes))
    parallel, _ = library.openmp()
    most = 1 if parallel is None else torch.get_num_threads()
    threads = max(1, min(most, sum(sizes) // _FOR_A_THREAD))
    numbers = (ctypes.c_int64 * len(sizes))(*sizes)
    sums = (ctypes.c_double * chunks)()
    places = [(ctypes.c_void_p * len(first))(*(t.data_ptr() for t in each)) for each in lists]
    addresses = [*map(ctypes.addressof, places), *[None] * (4 - len(lists))]
    work = _Work(
        len(first), chunks, threads, ctypes.addressof(numbers), *addresses,
        ctypes.addressof(sums), factor, shift, parallel,
    )  # fmt: skip
    level = library.level(library.instructions() or "")
    found: float = passes(work, which, first[0].dtype == torch.float64, level)
    return found
