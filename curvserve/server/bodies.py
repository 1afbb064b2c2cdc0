"""What all bodies together may take, so that many of them do not exhaust the machine."""

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

from curvserve_client.errors import DeadlineExceeded, Draining, Overloaded

T = TypeVar("T")


class Bodies:
    """All bodies that are being received or worked on: their memory, and how long they may take.

    Memory is counted as it is taken, by what has arrived: what a caller declares and does not send
    costs nothing.
    """

    def __init__(self, size: int) -> None:
        """Begin with none.

        Args:
            size: bytes that all of them may take together.
        """
        self._size = size
        self._taken = 0
        self._closed = False
        self._deadlines: set[asyncio.Timeout] = set()

    @contextmanager
    def share(self) -> Iterator[Callable[[int], None]]:
        """Yield what takes so many bytes more; what was taken is given back after the block.

        What is yielded raises:
            Overloaded: there is not as much left.
        """
        taken = 0

        def take(size: int) -> None:
            nonlocal taken
            self.check_room(size)
            self._taken += size
            taken += size

        try:
            yield take
        finally:
            self._taken -= taken

    def check_room(self, size: int) -> None:
        """Refuse a body for which there is no room.

        Raises:
            Overloaded: there is not as much left.
        """
        if self._taken + size > self._size:
            detail = f"{self._taken} bytes of bodies are being received or worked on"
            expected = f"at most {self._size} bytes at a time"
            raise Overloaded(detail, expected=expected, retry_after=1.0)

    async def arriving(self, receiving: Awaitable[T], seconds: float) -> T:
        """Return what is received, within so many seconds, or until `close`.

        Raises:
            Draining: the server stops, and would not work on what is still to come.
            DeadlineExceeded: the time has passed.
        """
        try:
            async with asyncio.timeout(0 if self._closed else seconds) as deadline:
                self._deadlines.add(deadline)
                try:
                    return await receiving
                finally:
                    self._deadlines.discard(deadline)
        except TimeoutError as error:
            if self._closed:
                raise Draining("the server stopped while the body arrived") from error
            raise DeadlineExceeded(f"the body did not arrive within {seconds:g} s") from error

    def close(self) -> None:
        """Wait for no body any more."""
        self._closed = True
        for deadline in self._deadlines:
            deadline.reschedule(asyncio.get_running_loop().time())
