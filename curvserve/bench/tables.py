"""All cases, one after the other, with each number of threads."""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch

from .case import Case
from .contestants import CONTESTANTS, Contestant
from .report import about, mean_ratio, table
from .rows import Row, compare


def run(
    cases: Iterable[Case],
    device: torch.device,
    threads: Sequence[int],
    rounds: int,
    seconds: float = float("inf"),
) -> Iterator[Row]:
    """Yield a row for each number of threads, case and quantity.

    Args:
        cases: nets and data.
        device: where.
        threads: of the CPU.
        rounds: see `measure`.
        seconds: see `measure`.

    Raises:
        WrongNumbers: a contestant computes something else.
    """
    before = torch.get_num_threads()
    cases = list(cases)
    try:
        for count in threads:
            torch.set_num_threads(count)
            for case in cases:
                for quantity in case.quantities:
                    yield compare(case, quantity, device, rounds, seconds)
    finally:
        torch.set_num_threads(before)


def lines(rows: Sequence[Row]) -> Iterator[str]:
    """Yield the text of the tables, one for each number of threads."""
    for threads in dict.fromkeys(row.threads for row in rows):
        own = [row for row in rows if row.threads == threads]
        yield from (f"CPU threads: {threads}", "", *table(own), "")
        for quantity in dict.fromkeys(row.quantity for row in own):
            mean = mean_ratio(row for row in own if row.quantity == quantity)
            if mean is not None:
                yield f"{quantity}: compiled takes {mean:.2f} of BackPACK's time, geometric mean"
        yield from sorted({f"{name}: {why}" for row in own for name, why in _told(row).items()})
        yield ""


def _told(row: Row) -> dict[str, str]:
    """Return why contestants that are here and have the quantity do not take part."""
    lacks = Contestant.lacks(row.quantity)
    absent = {name for name, kind in CONTESTANTS.items() if not kind.installed()}  # told by missing
    return {n: why for n, why in row.refused.items() if why != lacks and n not in absent}


def to_json(rows: Iterable[Row], device: torch.device) -> dict[str, Any]:
    """Return the machine and the rows as plain values."""
    return {"about": about(device), "rows": [row.to_json() for row in rows]}


INSTALL = "pip install 'curvserve[bench]'"


def missing() -> list[str]:
    """Return the packages of contestants that are not installed."""
    absent = (kind.package for kind in CONTESTANTS.values() if not kind.installed())
    return [package for package in dict.fromkeys(absent) if package]
