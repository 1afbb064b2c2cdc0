"""Threads that stay on a CPU of their own: ``binding.c``."""

import ctypes
import os

import torch

from curvserve.engine.native import library

__all__ = ["bind_team"]

_CPUS = 1024
"""As many as a set of the C library has room for."""


def bind_team() -> int:
    """Has each thread that computes for the calling one stay on a CPU of its own, and itself too.

    That is done where there are as many as there are CPUs for the process, and more than one:
    Linux likes to wake a worker on the CPU of the thread that wakes it, which then turns there
    until it has what the worker was to compute.

    Returns:
        How many threads stay where they are: all, or none.
    """
    parallel, thread = library.openmp()
    if library.compiled() is None or parallel is None or not hasattr(os, "sched_getaffinity"):
        return 0
    cpus = sorted(os.sched_getaffinity(0))
    if not 1 < len(cpus) == torch.get_num_threads() or cpus[-1] >= _CPUS:
        return 0
    size, address = ctypes.c_int64, ctypes.c_void_p
    bind = library.function("bind_team", size, address, size, address, address)
    bound: int = bind(library.numbers(cpus), len(cpus), parallel, thread)
    return bound
