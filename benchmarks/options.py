"""What a part of the benchmark is told, and what it returns."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch


@dataclass(frozen=True)
class Options:
    """What is asked for.

    Attributes:
        rounds: passes of each contestant.
        seconds: no round of a case begins after these, once there are three.
        threads: of the CPU; a table for each.
        device: where.
        nets: names; none for all.
        quantities: names; none for those of each net.
        batch: in place of each net's own.
    """

    rounds: int = 20
    seconds: float = 20.0
    threads: tuple[int, ...] = (1, 2)
    device: torch.device = torch.device("cpu")
    nets: tuple[str, ...] = ()
    quantities: tuple[str, ...] = ()
    batch: int | None = None


@dataclass(frozen=True)
class Result:
    """What a part has found.

    Attributes:
        lines: the text.
        figures: the same as plain values, for the plots.
    """

    lines: list[str]
    figures: dict[str, Any]


Part = Callable[[Options], Iterator[Result]]
"""The last result is the whole; those before it are what is there so far."""
