"""Which failed attempts of a call are made again, and when: one table."""

import random
from dataclasses import dataclass
from enum import Enum, auto

from .errors import (
    ConnectionFailed,
    CurvserveError,
    Draining,
    InFlight,
    NoDevice,
    Overloaded,
    ProblemError,
    QuotaExceeded,
    Unreachable,
    WorkersLost,
)

FIRST_PAUSE = 0.1
LONGEST_PAUSE = 5.0
SHORT_PAUSE = 0.02
"""Seconds, at most, between two looks at what others are about to end."""


class Again(Enum):
    """When a failed attempt is made again."""

    ALWAYS = auto()  # nothing was done
    IF_REPEATABLE = auto()  # it may have been done, and its repetition is answered alike
    IF_ASKED = auto()  # nothing was done, and the server says whether waiting helps: Retry-After


RETRIED: dict[type[CurvserveError], Again] = {
    Unreachable: Again.ALWAYS,
    Overloaded: Again.ALWAYS,
    Draining: Again.ALWAYS,
    NoDevice: Again.ALWAYS,
    WorkersLost: Again.ALWAYS,
    ConnectionFailed: Again.IF_REPEATABLE,
    InFlight: Again.IF_REPEATABLE,
    QuotaExceeded: Again.IF_ASKED,
}
"""Whatever is not here is told to the caller at once."""


@dataclass(frozen=True)
class Attempt:
    """One attempt of a call that has failed.

    Attributes:
        number: how many attempts there were, this one included.
        repeatable: whether the call may be made twice: it changes nothing, or carries an
            idempotency key.
        acquainted: whether the server has ever answered. One that has is waited for while it
            restarts; an address where nobody has ever been is told of at once.
        left: seconds until the call's deadline.
        not_yet: see `Request`.
    """

    number: int
    repeatable: bool
    acquainted: bool
    left: float
    not_yet: type[ProblemError] | None = None

    def pause(self, error: CurvserveError) -> float | None:
        """Return how many seconds to wait before the next attempt; None where there is none.

        The pause is drawn between 0 and a bound that doubles ("full jitter": Brooker, "Exponential
        backoff and jitter", AWS Architecture Blog, 2015), after what the server asks for.

        Args:
            error: how the attempt failed.
        """
        if type(error) is self.not_yet:
            return self._within(random.uniform(0, SHORT_PAUSE))
        again = RETRIED.get(type(error))
        if again is None or (again is Again.IF_REPEATABLE and not self.repeatable):
            return None
        if isinstance(error, ConnectionFailed) and not self.acquainted:
            return None
        asked = error.retry_after if isinstance(error, ProblemError) else None
        if again is Again.IF_ASKED and asked is None:
            return None
        bound = min(LONGEST_PAUSE, FIRST_PAUSE * 2.0 ** min(self.number - 1, 16))
        return self._within((asked or 0.0) + random.uniform(0, bound))

    def _within(self, pause: float) -> float | None:
        return pause if pause < self.left else None
