"""HTTP/1.1 as uvicorn speaks it, with a deadline for the head of each request.

uvicorn waits for the rest of a head as long as its sender likes; nothing of the application runs
until the head is there, so the deadline has to be here.
"""

import asyncio

from uvicorn.protocols.http.h11_impl import H11Protocol


def protocol_class(head_seconds: float) -> type[H11Protocol]:
    """Return the protocol of a server.

    Args:
        head_seconds: from the first byte of a request, or the beginning of the connection, to the
            end of its head.
    """

    class DeadlineProtocol(H11Protocol):
        _overdue: asyncio.TimerHandle | None = None

        def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
            super().connection_made(transport)
            self._expect_head()

        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            if self.cycle is not None and not self.cycle.response_complete:
                self._forget()
            elif self._overdue is None:
                self._expect_head()

        def connection_lost(self, exc: Exception | None) -> None:
            self._forget()
            super().connection_lost(exc)

        def _expect_head(self) -> None:
            self._overdue = self.loop.call_later(head_seconds, self.transport.close)

        def _forget(self) -> None:
            if self._overdue is not None:
                self._overdue.cancel()
                self._overdue = None

    return DeadlineProtocol
