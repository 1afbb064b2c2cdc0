"""HTTP/1.1 as uvicorn speaks it, with deadlines, a bound on heads, and stricter than its parser.

uvicorn waits for the rest of a head, and for its answer to be taken, as long as the caller likes;
nothing of the application runs meanwhile, so the deadlines have to be here. Its parser, that of
Node.js, is fast; of what RFC 9112 has a server refuse it leaves some to its user.
"""

import asyncio
from contextlib import suppress

import httptools
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

REFUSED = "Invalid HTTP request received."
"""What is told of a request that is none, by uvicorn's other protocols too."""

HEAD_BYTES = 64 * 1024
"""What a head may have, beside what came in one piece with its beginning."""

_VERSIONS = ("1.0", "1.1")


class NotHttp(Exception):
    """A head that the RFC has a server refuse."""


def protocol_class(head_seconds: float, stall_seconds: float) -> type[HttpToolsProtocol]:
    """Return the protocol of a server.

    Args:
        head_seconds: from the first byte of a request, or the beginning of the connection, to the
            end of its head.
        stall_seconds: from when the buffers are full of an answer until most of that was taken.
    """

    class DeadlineProtocol(StrictProtocol):
        _overdue: asyncio.TimerHandle | None = None
        _stalled: asyncio.TimerHandle | None = None

        def connection_made(  # type: ignore[override]  # as uvicorn has it, narrower than asyncio
            self, transport: asyncio.Transport
        ) -> None:
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


class StrictProtocol(HttpToolsProtocol):
    """Refuses what RFC 9112 has a server refuse; what a callback raises is answered with 400."""

    _in_head = True
    _head_bytes = 0
    _began = False  # with the bytes that are being parsed
    _declined = False  # a change of protocol, for the request whose head was read last

    def data_received(self, data: bytes) -> None:
        """Parse what arrived, and bound what is kept of a head that does not end."""
        if self.transport.is_closing():
            return  # it was refused, and whatever followed it is no request
        self._began = False
        self._unset_keepalive_if_required()
        try:
            self._feed(data)
        except httptools.HttpParserError:
            self.logger.warning(REFUSED)
            self.send_400_response(REFUSED)
        if self._in_head and not self._began:
            self._head_bytes += len(data)
            if self._head_bytes > HEAD_BYTES:
                self.send_400_response(f"The head has more than {HEAD_BYTES} bytes.")

    def _feed(self, data: bytes) -> None:
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade as upgrade:
            # the parser takes all that follows for another protocol, a body too; read again by one
            # that was not asked for any (RFC 9110, section 7.8: a server may go on with its own)
            head, (end,) = self._head(), upgrade.args
            self._declined = False
            self.parser = httptools.HttpRequestParser(self)
            with suppress(AttributeError):  # httptools before 0.6.3
                self.parser.set_dangerous_leniencies(lenient_data_after_close=True)
            self._feed(head + data[end:])

    def _head(self) -> bytes:
        """The head that was read last, without its wish for another protocol."""
        version = self.parser.get_http_version().encode()
        lines = [b"%b %b HTTP/%b" % (self.parser.get_method(), self.url, version)]
        for name, value in self.headers:
            if name == b"connection":
                tokens = [token.strip() for token in value.lower().split(b",")]
                value = b", ".join(token for token in tokens if token != b"upgrade")
            if name != b"upgrade":
                lines.append(b"%b: %b" % (name, value))
        return b"\r\n".join([*lines, b"", b""])

    def send_400_response(self, msg: str) -> None:
        """Answer what is no request; not in the middle of an answer, which only can break off."""
        cycle = self.cycle
        if cycle is not None and cycle.response_started and not cycle.response_complete:
            self.transport.close()
        else:
            super().send_400_response(msg)

    def on_message_begin(self) -> None:
        """Begin with a head."""
        self._began, self._head_bytes = True, 0
        super().on_message_begin()

    def on_header(self, name: bytes, value: bytes) -> None:
        """Take a field of the head; a trailer is none (RFC 9110, section 6.5.1)."""
        if self._in_head:
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        """Check a head as a whole, and begin with the request.

        Raises:
            NotHttp: a wish for a tunnel; another version; no host, or several; another encoding
                than one in chunks, or one in HTTP/1.0, which has none.
        """
        if self.parser.get_method() == b"CONNECT":
            raise NotHttp("no proxy")
        self._declined = self.parser.should_upgrade()
        if self._declined:
            return
        self._in_head = False
        version = self.parser.get_http_version()
        if version not in _VERSIONS:
            raise NotHttp(f"version {version}")
        hosts = sum(name == b"host" for name, _ in self.headers)
        if hosts > 1 or (hosts == 0 and version == "1.1"):
            raise NotHttp(f"{hosts} hosts")
        encodings = [value.lower() for name, value in self.headers if name == b"transfer-encoding"]
        if encodings and (encodings != [b"chunked"] or version == "1.0"):
            raise NotHttp(f"encoded as {encodings} in HTTP/{version}")
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        """Note the end of a request; what follows it is another's head."""
        if self._declined:
            return
        self._in_head, self._began, self._head_bytes = True, True, 0
        super().on_message_complete()
