"""Passes in turns, the order reversed every other round."""

import resource
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
        rounds: how many there are; the quartiles are those of passes that were not preempted, where
            there are `LEAST` of them.
        preempted: how many times another process took a core away in the middle of a pass.
    """

    median: float
    low: float
    high: float
    rounds: int
    preempted: int

    @classmethod
    def of(cls, passes: list[tuple[float, bool]]) -> "Timed":
        """Return the quartiles of at least two passes, each a time and whether it was preempted."""
        free = [spent for spent, preempted in passes if not preempted]
        times = free if len(free) >= LEAST else [spent for spent, _ in passes]
        low, median, high = statistics.quantiles(times, n=4, method="inclusive")
        return cls(median, low, high, len(passes), len(passes) - len(free))


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
    times: dict[str, list[tuple[float, bool]]] = {name: [] for name in passes}
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


def _milliseconds(each: Pass, device: torch.device | None) -> tuple[float, bool]:
    _wait(device)
    switches = _switches()
    began = time.perf_counter()
    each.run()
    _wait(device)
    spent = time.perf_counter() - began
    preempted = _switches() > switches
    each.drop()
    return 1000 * spent, preempted


def _switches() -> int:
    """Return how often a thread of this process had a core taken away."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_nivcsw


def _wait(device: torch.device | None) -> None:
    if device is not None and device.type == "cuda":
        torch.cuda.synchronize(device)
