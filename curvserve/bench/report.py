"""Tables for people, and what the machine is."""

import math
import os
import platform
from collections.abc import Iterable, Sequence

import torch
from tqdm import tqdm

from .contestants import CONTESTANTS
from .rows import PEER, Row

NOTHING = "–"


def say(line: str = "") -> None:
    """Print a line above the progress bar."""
    tqdm.write(line)


def about(device: torch.device) -> dict[str, str]:
    """Return what a figure depends on; the load is that of the last minute, others' included."""
    where = torch.cuda.get_device_name(device) if device.type == "cuda" else _processor()
    return {
        "torch": torch.__version__,
        "python": platform.python_version(),
        "device": where,
        "dtype": "float32",
        "load": f"{os.getloadavg()[0]:.1f} of {os.cpu_count()} cores",
    }


def table(rows: Sequence[Row]) -> list[str]:
    """Return the lines of one table; a column for each contestant that takes part anywhere."""
    names = [name for name in CONTESTANTS if any(name in row.times for row in rows)]
    peers = any(PEER in row.times for row in rows)
    ratios = [f"compiled/{PEER}"] if peers else []
    if any(row.over_fastest for row in rows):
        ratios.append("compiled/fastest other")
    head = ["net, batch", "quantity", *names, *ratios, "off"]
    return aligned(head, [_cells(row, names, ratios) for row in rows])


def aligned(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Return the lines of a table in Markdown that people can read as it is."""
    widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
    cells = [head, ["-" * width for width in widths], *rows]
    return [
        f"| {' | '.join(cell.ljust(width) for cell, width in zip(row, widths, strict=True))} |"
        for row in cells
    ]


def number(value: float | None, form: str = ".2f") -> str:
    """Return a number, or a dash for none."""
    return NOTHING if value is None else format(value, form)


def mean_ratio(rows: Iterable[Row]) -> float | None:
    """Return the geometric mean of our time over the peer's, over those that both do."""
    ratios = [ratio for row in rows if (ratio := row.over(PEER)) is not None]
    return math.prod(ratios) ** (1 / len(ratios)) if ratios else None


def _cells(row: Row, names: Sequence[str], ratios: Sequence[str]) -> list[str]:
    times = [number(row.times[n].median if n in row.times else None) for n in names]
    fastest = row.over_fastest
    told = [number(row.over(PEER))] if f"compiled/{PEER}" in ratios else []
    if "compiled/fastest other" in ratios:
        told.append(NOTHING if fastest is None else f"{fastest[1]:.2f} ({fastest[0]})")
    return [f"{row.net}, {row.batch}", row.quantity, *times, *told, number(row.worst, ".0e")]


def _processor() -> str:
    try:
        with open("/proc/cpuinfo") as lines:
            return next(part for part in lines if "model name" in part).partition(": ")[2].strip()
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()
