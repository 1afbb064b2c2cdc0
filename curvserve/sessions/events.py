"""What happens in the sessions, told to whoever watches, with a memory for those who come late."""

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, Mapping
from dataclasses import dataclass
from typing import Any

KEPT = 1024
"""Events that can be asked for again."""


@dataclass(frozen=True)
class Event:
    """Something that happened.

    Attributes:
        number: grows by one from event to event.
        kind: `step`, `failed`, `created`, `deleted`, `loaded` or `checkpoint`.
        members: JSON values that say what happened; `session` is always among them.
    """

    number: int
    kind: str
    members: Mapping[str, Any]


class Events:
    """The events of one server process, in order.

    Nobody who publishes waits: a watcher that falls further behind than the memory reaches misses
    events, and sees it by the numbers.
    """

    def __init__(self, kept: int = KEPT) -> None:
        """Begin with nothing.

        Args:
            kept: how many events can be asked for again.
        """
        self._events: deque[Event] = deque(maxlen=kept)
        self._last = 0
        self._closed = False
        self._news = asyncio.Event()

    def publish(self, kind: str, **members: Any) -> None:
        """Tell everybody who watches."""
        self._last += 1
        self._events.append(Event(self._last, kind, members))
        self._wake()

    def close(self) -> None:
        """Let every watcher come to an end once it has seen everything."""
        self._closed = True
        self._wake()

    async def watch(self, after: int | None = None) -> AsyncGenerator[Event]:
        """Yield events as they happen, until `close`.

        Args:
            after: the number of the last event that the watcher knows; the remembered ones that
                follow it come first. None for those that are yet to happen. A number that this
                process has not reached was another process's: everything remembered comes.
        """
        seen = self._last if after is None else after if after <= self._last else 0
        while True:
            news = self._news
            for event in [event for event in self._events if event.number > seen]:
                seen = event.number
                yield event
            if seen < self._last:
                continue
            if self._closed:
                return
            await news.wait()

    def _wake(self) -> None:
        news, self._news = self._news, asyncio.Event()
        news.set()
