"""An httpx transport that reads large bodies straight into reused memory.

httpx's own reads 64 KiB at a time through h11 and copies each piece; `http.client` reads a whole
body into a buffer. docs/decisions/0017 has the figures.
"""

import http.client
import select
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import cast

import httpx

BUFFERS = "curvserve_buffers"
"""Request extension: content type and length of a body -> where to put it; None for anywhere."""

Take = Callable[[str, int], memoryview | None]

_PIECE = 1024 * 1024
_IDLE_SECONDS = 2.0  # servers close idle connections (uvicorn: after 5 s); be first

Timeouts = Mapping[str, float | None]


@dataclass
class _Idle:
    connection: http.client.HTTPConnection
    since: float


class SocketTransport(httpx.BaseTransport):
    """HTTP/1.1 over sockets, with connections that are used again.

    Example:
        >>> client = httpx.Client(transport=SocketTransport())
    """

    def __init__(self, context: ssl.SSLContext | None = None, uds: str | None = None) -> None:
        """Begin without a connection.

        Args:
            context: what TLS is spoken with; None for httpx's default, made when it is needed.
            uds: path of a Unix socket to connect to, whatever the URL says.
        """
        self._context = context
        self._uds = uds
        self._idle: dict[tuple[str, str, int], list[_Idle]] = {}
        self._lock = threading.Lock()

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        """Send a request; the answer's body is read while it is iterated over.

        Raises:
            httpx.TransportError: as httpx's own transport.
        """
        url = request.url
        port = url.port or (443 if url.scheme == "https" else 80)
        place = (url.scheme, url.host, port)
        timeouts: Timeouts = request.extensions.get("timeout", {})
        connection = self._take(place) or self._connect(place, timeouts)
        line = connection.sock  # which `http.client` forgets where an answer is the last

        def limit(what: str = "read") -> None:
            line.settimeout(timeouts.get(what))

        try:
            _send(connection, request, limit)
            with _told(httpx.ReadTimeout, httpx.ReadError):
                limit()
                answer = connection.getresponse()
        except BaseException:
            connection.close()
            raise
        return self._response(place, connection, request, answer, limit)

    def close(self) -> None:
        """Close every idle connection."""
        with self._lock:
            idle = [each for several in self._idle.values() for each in several]
            self._idle.clear()
        for each in idle:
            each.connection.close()

    def _response(
        self,
        place: tuple[str, str, int],
        connection: http.client.HTTPConnection,
        request: httpx.Request,
        answer: http.client.HTTPResponse,
        limit: Callable[[], None],
    ) -> httpx.Response:
        def done() -> None:
            if answer.length == 0:
                answer.read()  # nothing, and then it knows that it has ended
            if answer.will_close or not answer.isclosed():
                answer.close()
                connection.close()
            else:
                self._give_back(place, connection)

        take: Take | None = request.extensions.get(BUFFERS)
        view = None
        if take is not None and answer.length is not None:
            view = take(answer.getheader("content-type", ""), answer.length)
        return httpx.Response(
            answer.status,
            headers=answer.getheaders(),
            stream=_Body(answer, view, limit, done),
            extensions={"http_version": b"HTTP/1.1"},
        )

    def _take(self, place: tuple[str, str, int]) -> http.client.HTTPConnection | None:
        """Return an idle connection that is still open."""
        while True:
            with self._lock:
                several = self._idle.get(place)
                if not several:
                    return None
                idle = several.pop()
            connection = idle.connection
            fresh = time.monotonic() - idle.since < _IDLE_SECONDS
            # what can be read now is the end of the connection
            if fresh and not select.select([connection.sock], [], [], 0)[0]:
                return connection
            connection.close()

    def _give_back(
        self, place: tuple[str, str, int], connection: http.client.HTTPConnection
    ) -> None:
        with self._lock:
            self._idle.setdefault(place, []).append(_Idle(connection, time.monotonic()))

    def _connect(
        self, place: tuple[str, str, int], timeouts: Timeouts
    ) -> http.client.HTTPConnection:
        scheme, host, port = place
        connection = http.client.HTTPConnection(host, port)
        with _told(httpx.ConnectTimeout, httpx.ConnectError):
            connection.sock = self._socket(host, port, timeouts.get("connect"))
            if scheme == "https":
                try:
                    connection.sock = self._tls().wrap_socket(connection.sock, server_hostname=host)
                except BaseException:
                    connection.sock.close()
                    raise
        return connection

    def _socket(self, host: str, port: int, timeout: float | None) -> socket.socket:
        if self._uds is None:
            found = socket.create_connection((host, port), timeout)
            found.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            return found
        found = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            found.settimeout(timeout)
            found.connect(self._uds)
        except BaseException:
            found.close()
            raise
        return found

    def _tls(self) -> ssl.SSLContext:
        if self._context is None:
            self._context = httpx.create_ssl_context()
        return self._context


class _Body(httpx.SyncByteStream):
    """The body of an answer, in pieces that are overwritten by the next unless a view was given."""

    def __init__(
        self,
        answer: http.client.HTTPResponse,
        view: memoryview | None,
        limit: Callable[[], None],
        done: Callable[[], None],
    ) -> None:
        self._answer = answer
        self._view = view
        self._limit = limit
        self._done = done

    def __iter__(self) -> Iterator[bytes]:
        with _told(httpx.ReadTimeout, httpx.ReadError):
            yield from self._pieces() if self._view is None else self._filled(self._view)

    def close(self) -> None:
        self._view = None  # a response lives until it is collected, and memory is to be used again
        self._done()

    def _pieces(self) -> Iterator[bytes]:
        self._limit()
        while piece := self._answer.read1(_PIECE):
            yield piece
            self._limit()
        if self._answer.length:
            raise http.client.IncompleteRead(b"", self._answer.length)

    def _filled(self, view: memoryview) -> Iterator[bytes]:
        position = 0
        while position < len(view):
            self._limit()
            piece = view[position : position + _PIECE]
            count = self._answer.readinto(piece)
            if not count:
                raise http.client.IncompleteRead(b"", len(view) - position)
            yield cast(bytes, piece[:count])  # httpx measures it and hands it on
            position += count


def _send(
    connection: http.client.HTTPConnection, request: httpx.Request, limit: Callable[[str], None]
) -> None:
    target = request.url.raw_path.decode("ascii")
    connection.putrequest(request.method, target, skip_host=True, skip_accept_encoding=True)
    for name, value in request.headers.raw:
        connection.putheader(name, value)
    with _told(httpx.WriteTimeout, httpx.WriteError):
        limit("write")
        try:
            connection.endheaders()
            for chunk in cast(httpx.SyncByteStream, request.stream):
                limit("write")
                connection.sock.sendall(chunk)
        except (BrokenPipeError, ConnectionResetError):
            pass  # a server may answer, and hang up, before it has taken the whole body


@contextmanager
def _told(timeout: type[httpx.TransportError], other: type[httpx.TransportError]) -> Iterator[None]:
    """Turn what sockets and `http.client` raise into what httpx does."""
    try:
        yield
    except TimeoutError as error:
        raise timeout(str(error) or "timed out") from error
    except http.client.HTTPException as error:
        text = str(error) or type(error).__name__
        raise httpx.RemoteProtocolError(text) from error
    except OSError as error:
        raise other(str(error) or type(error).__name__) from error
