"""How long each part of a request took: kept beside the request, without knowing HTTP."""

from contextlib import AbstractContextManager
from contextvars import ContextVar
from time import perf_counter
from typing import Literal, get_args

Phase = Literal["decode", "queue", "compute", "journal", "encode"]

PHASES: tuple[Phase, ...] = get_args(Phase)
"""In the order in which a request goes through them; the rest is receiving and sending."""


class Phases:
    """The seconds that one request has spent in each phase.

    Phases follow each other: one measured within another counts for both.

    Attributes:
        seconds: phase -> seconds so far; a phase that was never entered is absent.

    Example:
        >>> phases = Phases()
        >>> with phases.measure("compute"):
        ...     loss = model(inputs).sum()
        >>> list(phases.seconds)
        ['compute']
    """

    def __init__(self) -> None:
        """Begin with nothing measured."""
        self.seconds: dict[Phase, float] = {}

    def measure(self, name: Phase) -> AbstractContextManager[None]:
        """Add the time that a block takes to a phase, also where the block raises."""
        return _Block(self, name)

    def add(self, name: Phase, seconds: float) -> None:
        """Add seconds to a phase."""
        self.seconds[name] = self.seconds.get(name, 0.0) + seconds


class _Block:
    """A context manager for `Phases.measure`, as a generator would be at four times the price."""

    def __init__(self, phases: Phases, name: Phase) -> None:
        self._phases, self._name = phases, name

    def __enter__(self) -> None:
        self._start = perf_counter()

    def __exit__(self, *_: object) -> None:
        self._phases.add(self._name, perf_counter() - self._start)


current: ContextVar[Phases] = ContextVar("curvserve.phases")
"""The phases of the request that is being answered; a thread or task of another's has none."""


def measure(name: Phase) -> AbstractContextManager[None]:
    """Add the time that a block takes to a phase of the current request, if there is one."""
    return (current.get(None) or Phases()).measure(name)
