"""Gradient and a quantity: every contestant on every net."""

from dataclasses import replace

from benchmarks.nets import CASES
from benchmarks.options import Options, Result
from curvserve.bench import Case, lines, run, to_json


def cases(options: Options) -> list[Case]:
    """Return the nets that are asked for."""
    wanted = [case for case in CASES if not options.nets or case.name in options.nets]
    if options.quantities:
        wanted = [replace(case, quantities=options.quantities) for case in wanted]
    if options.batch is None:
        return wanted
    first = {case.name: case for case in reversed(wanted)}  # each net once
    return [replace(case, batch=options.batch) for case in reversed(first.values())]


def part(options: Options) -> Result:
    """Check and time all contestants."""
    wanted = cases(options)
    device = options.device
    threads = options.threads if device.type == "cpu" else options.threads[:1]
    rows = list(run(wanted, device, threads, options.rounds, options.seconds))
    return Result(list(lines(rows)), to_json(rows, device))
