"""Gradient and a quantity: every contestant on every net."""

from collections.abc import Iterator
from dataclasses import replace

from benchmarks.nets import CASES
from benchmarks.options import Options, Result
from curvserve.bench import Case, Row, lines, run, to_json


def cases(options: Options) -> list[Case]:
    """Return the nets that are asked for."""
    wanted = [case for case in CASES if not options.nets or case.name in options.nets]
    if options.quantities:
        wanted = [replace(case, quantities=options.quantities) for case in wanted]
    if options.batch is None:
        return wanted
    first = {case.name: case for case in reversed(wanted)}  # each net once
    return [replace(case, batch=options.batch) for case in reversed(first.values())]


def part(options: Options) -> Iterator[Result]:
    """Check and time all contestants; the table so far after each case."""
    wanted = cases(options)
    device = options.device
    threads = options.threads if device.type == "cpu" else options.threads[:1]
    rows: list[Row] = []
    for row in run(wanted, device, threads, options.rounds, options.seconds):
        rows.append(row)
        yield Result(list(lines(rows)), to_json(rows, device))
