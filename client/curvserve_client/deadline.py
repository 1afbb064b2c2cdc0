"""How long a call may take in all, and what it was waiting for when that ran out."""

import time

from .errors import DeadlinePassed


class Deadline:
    """The total time of one call.

    Attributes:
        timeouts: what is left, in httpx's form. The dictionary itself is updated, because httpx
            reads it anew when it begins to connect, to send and to receive.
    """

    def __init__(self, seconds: float, purpose: str, address: str) -> None:
        """Start the clock.

        Args:
            seconds: how long the call may take.
            purpose: what the call is for.
            address: whom it asks.
        """
        self._seconds = seconds
        self._end = time.monotonic() + seconds
        self._about = f"{purpose} from {address}"
        self.timeouts: dict[str, float | None] = {}
        self.check("a connection")

    @property
    def left(self) -> float:
        """The seconds that are left."""
        return self._end - time.monotonic()

    def check(self, awaited: str) -> None:
        """Go on to wait for something, with the time that is left.

        Args:
            awaited: what is waited for from now on.

        Raises:
            DeadlinePassed: no time is left.
        """
        left = self.left
        if left <= 0:
            raise self.passed(awaited)
        self.timeouts.update(connect=left, read=left, write=left, pool=left)

    def passed(self, awaited: str) -> DeadlinePassed:
        """Return the error that says what was waited for."""
        return DeadlinePassed(
            f"{self._about}: waited {self._seconds:g} s, the last of it for {awaited}"
        )
