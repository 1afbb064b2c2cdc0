"""Passes in turns, the order reversed every other round."""

import statistics
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import torch
from tqdm import tqdm

WARM_UP = 2
LEAST = 3
"""Rounds that are timed whatever they take."""


class Pass(Protocol):
    """What is timed."""

    def run(self) -> None:
        """Do one pass."""

    def drop(self) -> None:
        """Let go of what it computed; not timed."""


@dataclass(frozen=True)
class Timed:
    """The times of one contestant, milliseconds.

    Attributes:
        median: the middle one.
        low: a quarter are below.
        high: a quarter are above.
        rounds: how many there are.
    """

    median: float
    low: float
    high: float
    rounds: int

    @classmethod
    def of(cls, times: list[float]) -> "Timed":
        """Return the quartiles of at least two times."""
        low, median, high = statistics.quantiles(times, n=4, method="inclusive")
        return cls(median, low, high, len(times))


def measure(
    passes: Mapping[str, Pass],
    rounds: int,
    title: str = "",
    device: torch.device | None = None,
    seconds: float = float("inf"),
    pause: float = 0.0,
) -> dict[str, Timed]:
    """Return each one's times; a round runs every one once.

    Args:
        passes: name -> what is timed.
        rounds: how many are timed.
        title: of the progress bar.
        device: where they compute; the clock is read when it has done all.
        seconds: no round begins after these, once there are `LEAST`.
        pause: seconds before each pass, for threads of the one before that still spin for work.
    """
    times: dict[str, list[float]] = {name: [] for name in passes}
    began = time.perf_counter()
    for number in tqdm(range(-WARM_UP, rounds), desc=title, leave=False, disable=None):
        if number >= LEAST and time.perf_counter() - began > seconds:
            break
        for name in list(passes)[:: 1 if number % 2 else -1]:
            time.sleep(pause)
            spent = _milliseconds(passes[name], device)
            if number >= 0:
                times[name].append(spent)
    return {name: Timed.of(values) for name, values in times.items()}


def _milliseconds(each: Pass, device: torch.device | None) -> float:
    _wait(device)
    began = time.perf_counter()
    each.run()
    _wait(device)
    spent = time.perf_counter() - began
    each.drop()
    return 1000 * spent


def _wait(device: torch.device | None) -> None:
    if device is not None and device.type == "cuda":
        torch.cuda.synchronize(device)
