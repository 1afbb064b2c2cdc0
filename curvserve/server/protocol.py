"""HTTP/1.1 as uvicorn speaks it, with deadlines for the head of a request and for a stalled answer.

uvicorn waits for the rest of a head, and for its answer to be taken, as long as the caller likes;
nothing of the application runs meanwhile, so the deadlines have to be here.
"""

import asyncio

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol


def protocol_class(head_seconds: float, stall_seconds: float) -> type[H11Protocol]:
    """Return the protocol of a server.

    Args:
        head_seconds: from the first byte of a request, or the beginning of the connection, to the
            end of its head.
        stall_seconds: from when the buffers are full of an answer until most of that was taken.
    """

    class DeadlineProtocol(H11Protocol):
        _overdue: asyncio.TimerHandle | None = None
        _stalled: asyncio.TimerHandle | None = None

        def connection_made(  # type: ignore[override]  # as uvicorn has it, narrower than asyncio
            self, transport: asyncio.Transport
        ) -> None:
            self.conn = _Connection(h11.SERVER)
            super().connection_made(transport)
            self._expect_head()

        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            if self.cycle is not None and not self.cycle.response_complete:
                self._forget_head()
            elif self._overdue is None:
                self._expect_head()

        def pause_writing(self) -> None:
            super().pause_writing()
            # not close(), which would wait for the answer to be taken
            self._stalled = self.loop.call_later(stall_seconds, self.transport.abort)

        def resume_writing(self) -> None:
            super().resume_writing()
            self._forget_stall()

        def connection_lost(self, exc: Exception | None) -> None:
            self._forget_head()
            self._forget_stall()
            super().connection_lost(exc)

        def _expect_head(self) -> None:
            self._overdue = self.loop.call_later(head_seconds, self.transport.close)

        def _forget_head(self) -> None:
            if self._overdue is not None:
                self._overdue.cancel()
                self._overdue = None

        def _forget_stall(self) -> None:
            if self._stalled is not None:
                self._stalled.cancel()
                self._stalled = None

    return DeadlineProtocol


class _Connection(h11.Connection):
    """Hands bodies on as they lie in memory, and a head together with what follows it."""

    _head = b""

    def send(self, event: h11.Event) -> bytes | None:  # type: ignore[override]  # one of three
        """Return what is to be written; see `h11.Connection.send`."""
        parts = self.send_with_data_passthrough(event)
        if parts is None:
            return None
        if isinstance(event, h11.Response) and _has_length(event):
            self._head = b"".join(parts)
            return b""
        if self._head:
            parts, self._head = [self._head, *parts], b""
        return parts[0] if len(parts) == 1 else b"".join(parts)


def _has_length(answer: h11.Response) -> bool:
    return any(name == b"content-length" for name, _ in answer.headers)
