"""The library of our kernels, the threads that they run in, and whether they are there at all."""

import ctypes
from collections.abc import Sequence
from functools import cache
from importlib.machinery import EXTENSION_SUFFIXES
from itertools import product
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

__all__ = [
    "Numbers",
    "Team",
    "admits",
    "compiled",
    "function",
    "instructions",
    "level",
    "numbers",
    "openmp",
    "places",
    "team",
]

_INSTRUCTIONS = ("AVX2", "AVX512")
"""How the names begin that torch has for what it may use; ``ATEN_CPU_CAPABILITY`` forbids some."""


Numbers = ctypes.Array[ctypes.c_int64]


class Team(ctypes.Structure):
    """Threads for a kernel, and memory of each, as ``kernels.h`` has them."""

    _fields_ = [
        *((name, ctypes.c_int64) for name in ("threads", "scratch_bytes")),
        *((name, ctypes.c_void_p) for name in ("scratch", "parallel", "thread")),
    ]


@cache
def compiled() -> ctypes.CDLL | None:
    """The library; None where it was not compiled."""
    for suffix in EXTENSION_SUFFIXES:
        path = Path(__file__).with_name(f"_kernels{suffix}")
        if path.exists():
            return ctypes.CDLL(str(path))
    return None


def function(name: str, result: Any, *arguments: Any) -> Any:
    """One of the library's functions, which has to be there, with the types that it takes."""
    library = compiled()
    assert library is not None
    found = library[name]  # not an attribute, which others would have as well
    found.restype, found.argtypes = result, arguments
    return found


@cache
def openmp() -> tuple[int | None, int | None]:
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
    """What the kernels compute with, by torch's name; None where they were not compiled."""
    return None if compiled() is None else torch.backends.cpu.get_cpu_capability()


def level(name: str) -> int:
    """What the library is to compute with at most: 0 what all processors have, 1 AVX2, 2 AVX-512.

    Args:
        name: Torch's name for it.
    """
    known = [i for i, begins in enumerate(_INSTRUCTIONS, start=1) if name.startswith(begins)]
    return max(known, default=0)


def admits(tensor: Tensor) -> bool:
    """Whether the kernels compute on this device and with these numbers."""
    usual = tensor.dtype in (torch.float32, torch.float64)
    return usual and tensor.device.type == "cpu" and instructions() is not None


def places(shape: Sequence[int], steps: Sequence[int]) -> list[int]:
    """How far each number of a tensor with these steps is from the first, in their order."""
    each = [[i * step for i in range(size)] for size, step in zip(shape, steps, strict=True)]
    return list(map(sum, product(*each)))


def numbers(values: Sequence[int]) -> Numbers:
    """Whole numbers as the kernels read them."""
    return (ctypes.c_int64 * len(values))(*values)


def team(tasks: int, scratch_bytes: int) -> tuple[Team, Tensor]:
    """Threads for so many tasks, and their memory, which has to be held until they have ended.

    Args:
        tasks: How many there are.
        scratch_bytes: What a thread needs.
    """
    parallel, thread = openmp()
    threads = 1 if parallel is None else min(torch.get_num_threads(), tasks)
    scratch = torch.empty(threads, scratch_bytes, dtype=torch.uint8, device="cpu")
    return Team(threads, scratch_bytes, scratch.data_ptr(), parallel, thread), scratch
