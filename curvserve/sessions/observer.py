"""Looks at the steps of a session for those who watch, and never on a step's path."""

import asyncio
import logging
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from time import monotonic, thread_time
from typing import Any

from .curvature import SeenStep, summary
from .events import Events

log = logging.getLogger("curvserve.sessions")

INTERVAL = 0.5
"""Least seconds from one look at a session to the next."""

SHARE = 0.02
"""Most of one core's time that looking may take: it holds Python's lock, which a step needs too."""

KEPT = 240
"""Summaries that `history` can tell of; when there are so many, every second one goes."""


def make_thread() -> ThreadPoolExecutor:
    """Return the one thread in which all sessions of a server are looked at."""
    return ThreadPoolExecutor(max_workers=1, thread_name_prefix="curvserve-observer")


class Observer:
    """Who looks at one session.

    A step asks `is_due`, and if so hands over references to its tensors, which nobody writes to.
    """

    def __init__(
        self,
        session: str,
        events: Events,
        thread: ThreadPoolExecutor,
        summarise: Callable[[SeenStep], dict[str, Any]] = summary,
    ) -> None:
        """Begin without having seen anything.

        Args:
            session: the session's name.
            events: who is told.
            thread: where it is computed.
            summarise: what is computed of a step.
        """
        self._session = session
        self._events = events
        self._thread = thread
        self._summarise = summarise
        self._next = 0.0
        self._busy = False
        self._history: list[dict[str, Any]] = []

    def is_due(self) -> bool:
        """Tell whether the next step is to be looked at."""
        return self._events.watched and not self._busy and monotonic() >= self._next

    def history(self, after: int = -1) -> list[dict[str, Any]]:
        """Return the summaries of steps behind a version, the oldest first."""
        return [found for found in self._history if found["version"] > after]

    def look(self, step: SeenStep) -> None:
        """Have a step looked at, beside everything else; returns at once."""
        if not self._events.watched:  # any more: the thread may have ended
            return
        self._busy = True
        loop = asyncio.get_running_loop()

        def work() -> None:
            began = thread_time()
            try:
                found = self._summarise(step)
            except Exception:  # it is logged; a step must not suffer from being watched
                log.exception("session %s: its curvature could not be looked at", self._session)
                found = None
            loop.call_soon_threadsafe(self._seen, found, thread_time() - began)

        self._thread.submit(work)

    def close(self) -> None:
        """Look no more, and show nothing of what is being looked at."""
        self._busy = True
        self._session = ""

    def _seen(self, found: dict[str, Any] | None, seconds: float) -> None:
        if not self._session:
            return
        self._busy = False
        self._next = monotonic() + max(INTERVAL, seconds / SHARE)
        if found is None:
            return
        self._history.append(found)
        if len(self._history) >= KEPT:
            del self._history[1:-1:2]
        self._events.show("curvature", self._session, **found)
