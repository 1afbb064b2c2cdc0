"""Peak memory of one pass, each in a process of its own.

On a CPU the high-water mark of resident memory, which Linux counts anew once it is told to; on a
GPU what torch's allocator held at most. In both, what is there before the pass (net, batch,
libraries) is taken off, and what it returns is part of it. It is the second pass of its net: what
is found out in the first, and remembered, is no part of those that follow, here as in the times.
What was kept of the first pass's results to be used again is given back before.
"""

import ctypes
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path

import torch
from tqdm import tqdm

from benchmarks.options import Options, Result
from benchmarks.passes import cases
from curvserve.bench import CONTESTANTS, Case, about, aligned, number
from curvserve.engine import results

NAMES = (
    "gradient",
    "hooks",
    "evaluate",
    "BackPACK",
    "torch.func",
    "opacus",
    "curvlinops",
)
BATCHES = (16, 32, 64, 128, 256, 512)


def peak(case: Case, quantity: str, name: str, device: torch.device) -> float | None:
    """Return the megabytes that a contestant's pass takes; None where it does not take part.

    Args:
        case: net and data.
        quantity: what is computed.
        name: the contestant's.
        device: where.
    """
    # a server that has loaded torch and computed nothing forks each process
    context = get_context("forkserver")
    context.set_forkserver_preload(["backpack", "benchmarks.nets"])
    with ProcessPoolExecutor(1, mp_context=context) as process:
        return process.submit(_peak, case, quantity, name, str(device)).result()


def _peak(case: Case, quantity: str, name: str, where: str) -> float | None:
    torch.set_num_threads(1)
    device, kind = torch.device(where), CONTESTANTS[name]
    if kind.refusal(case.task(quantity, device, samples=1)):
        return None
    contestant = kind(case.task(quantity, device))
    try:
        contestant.run()
    except NotImplementedError:
        return None
    contestant.drop()
    results.release()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        contestant.run()
        return (torch.cuda.max_memory_allocated(device) - before) / 1e6
    ctypes.CDLL(None).malloc_trim(0)  # freed memory that is still resident would be used first
    Path("/proc/self/clear_refs").write_text("5")
    before = _resident("VmRSS")
    contestant.run()
    return (_resident("VmHWM") - before) / 1e6


def _resident(field: str) -> int:
    """Return a line of /proc/self/status in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(f"{field}:"))


def part(options: Options) -> Iterator[Result]:
    """Measure all contestants on all nets, and the growth of one net's pass with the batch."""
    wanted = [(case, quantity) for case in cases(options) for quantity in case.quantities]
    rows = [_row(*each, options) for each in tqdm(wanted, desc="memory", leave=False, disable=None)]
    first = wanted[0][0]
    sizes = BATCHES if options.batch is None else (options.batch,)
    growth = [_row(replace(first, batch=size), "DiagGGNMC", options) for size in sizes]
    head = ["net, batch", "quantity", *NAMES, "evaluate/BackPACK"]
    lines = ["Peak memory of a pass, MB", ""]
    for table in (rows, growth):
        lines += [*aligned(head, [_cells(row) for row in table]), ""]
    yield Result(lines, {"about": about(options.device), "rows": rows, "growth": growth})


def _row(case: Case, quantity: str, options: Options) -> dict[str, object]:
    megabytes = {name: peak(case, quantity, name, options.device) for name in NAMES}
    ours, peer = megabytes["evaluate"], megabytes["BackPACK"]
    return {
        "net": case.name,
        "batch": case.batch,
        "quantity": quantity,
        "megabytes": {name: value for name, value in megabytes.items() if value is not None},
        "over_peer": ours / peer if ours is not None and peer is not None else None,
    }


def _cells(row: dict) -> list[str]:
    found = [number(row["megabytes"].get(name), ".0f") for name in NAMES]
    return [f"{row['net']}, {row['batch']}", row["quantity"], *found, number(row["over_peer"])]
