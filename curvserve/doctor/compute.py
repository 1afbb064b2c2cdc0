"""Where steps would be computed."""

import os
from collections.abc import Iterator
from pathlib import Path

import torch

from ..engine import native
from .check import Check, gibibytes

_DRIVER = Path("/proc/driver/nvidia/version")
_QUOTA = Path("/sys/fs/cgroup/cpu.max")


def compute() -> Iterator[Check]:
    """Yield processors, the kernel for them, memory and GPUs."""
    yield _threads()
    yield _kernel()
    yield Check("memory", gibibytes(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")))
    yield from _gpus()


def _threads() -> Check:
    threads, cores = torch.get_num_threads(), _cores()
    found = f"{threads} threads on {cores:g} cores"
    if threads <= cores:
        return Check("cpu", found)
    advice = (
        f"set OMP_NUM_THREADS={max(1, int(cores))}: more threads than cores wait for each other"
    )
    return Check("cpu", found, "warning", advice)


def _kernel() -> Check:
    """Tell whether the engine's own kernel was compiled, and what it computes with."""
    instructions = native.instructions()
    if instructions:
        return Check("kernel", f"compiled, {instructions}")
    advice = "install a C compiler (gcc) and reinstall curvserve: it takes up to a fifth off a step"
    return Check("kernel", "not compiled: torch computes in its place", "warning", advice)


def _cores() -> float:
    """Return how many cores this process may use, by affinity and by a container's quota."""
    allowed = float(len(os.sched_getaffinity(0)))
    quota, _, period = _QUOTA.read_text().partition(" ") if _QUOTA.exists() else ("max", "", "")
    return allowed if quota == "max" else min(allowed, int(quota) / int(period))


def _gpus() -> Iterator[Check]:
    driver, built = _driver(), torch.version.cuda
    if not torch.cuda.is_available():
        if driver:
            advice = "torch does not see it: is this a CUDA build, and is the driver new enough?"
            yield Check("gpu", f"driver: {driver}; torch built for CUDA {built}", "error", advice)
        else:
            yield Check("gpu", "none; computing on the CPU")
        return
    yield Check("cuda", f"torch built for {built}; driver: {driver or 'unknown'}")
    for number in range(torch.cuda.device_count()):
        about = torch.cuda.get_device_properties(number)
        free, total = torch.cuda.mem_get_info(number)
        memory = f"{gibibytes(free)} of {gibibytes(total)} free"
        yield Check(f"cuda:{number}", f"{about.name}, {memory}")


def _driver() -> str:
    """Return which NVIDIA driver is loaded; nothing where none is."""
    if not _DRIVER.exists():
        return ""
    return _DRIVER.read_text().partition("\n")[0].removeprefix("NVRM version: ")
