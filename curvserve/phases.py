"""How long each part of a request took: kept beside the request, without knowing HTTP."""

from collections.abc import Iterator
from contextlib import contextmanager
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

    @contextmanager
    def measure(self, name: Phase) -> Iterator[None]:
        """Add the time that a block takes to a phase, also where the block raises."""
        start = perf_counter()
        try:
            yield
        finally:
            self.add(name, perf_counter() - start)

    def add(self, name: Phase, seconds: float) -> None:
        """Add seconds to a phase."""
        self.seconds[name] = self.seconds.get(name, 0.0) + seconds


current: ContextVar[Phases] = ContextVar("curvserve.phases")
"""The phases of the request that is being answered; a thread or task of another's has none."""


@contextmanager
def measure(name: Phase) -> Iterator[None]:
    """Add the time that a block takes to a phase of the current request, if there is one."""
    with current.get(Phases()).measure(name):
        yield
