"""`curvserve bench`."""

import json
import os
from collections.abc import Sequence

import torch

from ..models import resolve
from .case import QUANTITIES, case_of
from .checks import WrongNumbers
from .report import about, say
from .tables import INSTALL, lines, missing, run, to_json


class BenchFailed(Exception):
    """There are no figures; the text says why, in one line."""


def bench(
    model: str,
    batch: int,
    quantities: Sequence[str] | None,
    threads: Sequence[int] | None,
    rounds: int,
    device: torch.device,
    *,
    as_json: bool,
) -> None:
    """Check and time all contestants on a model, and print the table.

    Args:
        model: a registered name, or `package.module:attribute`.
        batch: samples.
        quantities: names of extensions; None for the Monte-Carlo diagonal.
        threads: of the CPU, one table for each; None for 1 and, where there are two cores, 2.
        rounds: passes of each contestant.
        device: where.
        as_json: print figures instead of a table.

    Raises:
        ModelNotFound: no such model.
        BenchFailed: an unknown quantity, or a contestant's numbers are wrong.
    """
    if unknown := [name for name in quantities or () if name not in QUANTITIES]:
        raise BenchFailed(f"no quantity {unknown[0]!r}; there are: {', '.join(QUANTITIES)}")
    case = case_of(resolve(model), batch, tuple(quantities or ["DiagGGNMC"]))
    if not as_json:
        say(", ".join(f"{key} {value}" for key, value in about(device).items()))
        say(f"median milliseconds of {rounds} rounds in turns\n")
    try:
        rows = list(run([case], device, threads or _threads(device), rounds))
    except WrongNumbers as error:
        raise BenchFailed(str(error)) from error
    if as_json:
        say(json.dumps(to_json(rows, device), indent=2))
        return
    for text in lines(rows):
        say(text)
    if absent := missing():
        say(f"not installed, so not timed: {', '.join(absent)}; {INSTALL}")


def _threads(device: torch.device) -> list[int]:
    """Return the numbers of threads that are worth a table."""
    two = device.type == "cpu" and (os.cpu_count() or 1) > 1
    return [1, 2] if two else [1]
