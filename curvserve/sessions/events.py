"""What happens in the sessions, told to whoever watches, with a memory for those who come late."""

import asyncio
import json
import time
from collections import deque
from collections.abc import AsyncGenerator, Mapping
from dataclasses import dataclass
from functools import cached_property
from operator import itemgetter
from typing import Any

KEPT = 1024
"""Events that can be asked for again."""

MISSED = "missed"


@dataclass(frozen=True)
class Event:
    """Something that happened, or the newest reading of something that changes all the time.

    Attributes:
        number: grows from event to event; None for a reading, which is replaced and not replayed.
        kind: `step`, `failed`, `created`, `deleted`, `loaded`, `checkpoint`; `missed`; of readings
            `status` and `curvature`.
        members: JSON values that say what happened. `session` is among them where it is about one.
    """

    number: int | None
    kind: str
    members: Mapping[str, Any]

    @cached_property
    def text(self) -> str:
        """The members as JSON, written once for all who watch."""
        return json.dumps(self.members, separators=(",", ":"), allow_nan=False)


class Events:
    """The events of one server process, in order, and the newest readings.

    Nobody who publishes waits. A watcher that falls further behind than the memory reaches is told
    `missed`; of readings it gets the newest only.

    Numbers begin at the time of the start in microseconds, so that those of an earlier process are
    below all of this one's: who comes with one of these has missed something, and is told so.
    """

    def __init__(self, kept: int = KEPT, first: int | None = None) -> None:
        """Begin with nothing.

        Args:
            kept: how many events can be asked for again.
            first: the number of the first event.
        """
        self._events: deque[Event] = deque(maxlen=kept)
        self._readings: dict[tuple[str, str | None], tuple[int, Event]] = {}
        self._last = (time.time_ns() // 1000 if first is None else first) - 1
        self._before = self._last  # the newest number that cannot be asked for
        self._shown = 0
        self._closed = False
        self._news = asyncio.Event()
        self._watchers = 0
        self._attended = asyncio.Event()

    @property
    def watched(self) -> bool:
        """Whether anybody watches."""
        return self._watchers > 0 and not self._closed

    async def attended(self) -> None:
        """Return once somebody watches."""
        await self._attended.wait()

    def publish(self, kind: str, **members: Any) -> None:
        """Tell everybody who watches that something has happened."""
        if len(self._events) == self._events.maxlen:
            self._before += 1
        self._last += 1
        self._events.append(Event(self._last, kind, members))
        if kind == "deleted":
            self._readings = {
                key: shown for key, shown in self._readings.items() if key[1] != members["session"]
            }
        self._wake()

    def show(self, kind: str, session: str | None = None, **members: Any) -> None:
        """Replace a reading, and show it to everybody who watches.

        Args:
            kind: what is read.
            session: of which session; None for the whole server.
            members: JSON values.
        """
        self._shown += 1
        about = {} if session is None else {"session": session}
        self._readings[kind, session] = (self._shown, Event(None, kind, about | members))
        self._wake()

    def close(self) -> None:
        """Let every watcher come to an end once it has seen everything."""
        self._closed = True
        self._wake()

    async def watch(
        self, after: int | None = None, session: str | None = None
    ) -> AsyncGenerator[Event]:
        """Yield the current readings, then events and readings as they come, until `close`.

        Args:
            after: the number of the last event that the watcher knows; the remembered ones that
                follow it come first, behind `missed` where some are forgotten or it is none of this
                process. None for those that are yet to happen.
            session: leave out the steps, failures and curvature of other sessions.
        """
        seen = self._last if after is None else after
        shown = 0
        self._come(1)
        try:
            while True:
                news = self._news
                if not self._before <= seen <= self._last:
                    seen = self._before
                    yield Event(None, MISSED, {})
                for event in [event for event in self._events if (event.number or 0) > seen]:
                    seen = event.number or seen
                    if _concerns(event, session):
                        yield event
                for revision, event in sorted(self._readings.values(), key=itemgetter(0)):
                    if revision > shown:
                        shown = revision
                        if _concerns(event, session):
                            yield event
                if news is not self._news:
                    continue
                if self._closed:
                    return
                await news.wait()
        finally:
            self._come(-1)

    def _come(self, change: int) -> None:
        self._watchers += change
        if self._watchers:
            self._attended.set()
        else:
            self._attended.clear()
            self._readings.clear()  # old ones by the time that somebody comes again

    def _wake(self) -> None:
        news, self._news = self._news, asyncio.Event()
        news.set()


_OF_ONE_SESSION = ("step", "failed", "curvature")


def _concerns(event: Event, session: str | None) -> bool:
    if session is None or event.kind not in _OF_ONE_SESSION:
        return True
    return bool(event.members["session"] == session)
