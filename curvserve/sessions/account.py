"""What one caller has under way over all sessions, and how much that may be."""

from collections import Counter
from dataclasses import dataclass, field

from curvserve_client.errors import QuotaExceeded

QUOTAS = ("sessions", "requests")
"""What is limited."""

PAUSE = 1.0
"""Seconds after which a request may be tried again: others of the same caller end all the time."""


@dataclass(eq=False)
class Account:
    """One API key's quotas, and what they are compared with.

    Attributes:
        name: the key's name; empty for whoever needs none.
        max_sessions: the most live sessions that it may have begun; 0 for no limit.
        max_requests: the most of its requests that may wait or be computed at a time; 0 likewise.
        requests: how many wait or are computed now.
        refused: quota -> how often it was reached.

    Example:
        >>> account = Account("loop", max_requests=1)
        >>> account.begin_request()
        >>> account.begin_request()
        Traceback (most recent call last):
        curvserve_client.errors.QuotaExceeded: requests of the API key 'loop' that wait or ...: 1
    """

    name: str = ""
    max_sessions: int = 0
    max_requests: int = 0
    requests: int = 0
    refused: Counter[str] = field(default_factory=Counter)

    def check_sessions(self, live: int) -> None:
        """Refuse one session more.

        Args:
            live: how many it has begun that have not ended.

        Raises:
            QuotaExceeded: these are as many as it may have; waiting does not help.
        """
        if self.max_sessions and live >= self.max_sessions:
            self.refused["sessions"] += 1
            message = f"live sessions that the API key {self.name!r} has begun: {live}"
            raise QuotaExceeded(message, expected=f"at most {self.max_sessions} at a time")

    def check_requests(self) -> None:
        """Refuse one request more.

        Raises:
            QuotaExceeded: as many as it may have wait or are computed; it says when to come again.
        """
        if self.max_requests and self.requests >= self.max_requests:
            self.refused["requests"] += 1
            waiting = f"requests of the API key {self.name!r} that wait or are being computed"
            expected = f"at most {self.max_requests} at a time"
            raise QuotaExceeded(f"{waiting}: {self.requests}", expected=expected, retry_after=PAUSE)

    def begin_request(self) -> None:
        """Count a request that is admitted.

        Raises:
            QuotaExceeded: see `check_requests`.
        """
        self.check_requests()
        self.requests += 1

    def end_request(self) -> None:
        """Count it no longer."""
        self.requests -= 1
