"""An httpx transport that reads large bodies straight into reused memory.

httpx's own reads 64 KiB at a time through h11 and copies each piece; `http.client` reads a whole
body into a buffer. docs/decisions/0017 has the figures, 0032 those of what is left out of
`http.client`: its parser of heads, which is that of mail, and a write for each part of a request.
"""

import http.client
import re
import select
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from types import MappingProxyType, SimpleNamespace
from typing import Any, Protocol, cast
from urllib.parse import urlencode

import httpx

BUFFERS = "curvserve_buffers"
"""Request extension: content type and length of a body -> where to put it; None for anywhere."""

Take = Callable[[str, int], memoryview | None]

_AGENT = "curvserve-client"
_PIECE = 1024 * 1024
_SMALL = 16 * 1024  # bytes that are sent with the head
_LINE, _LINES = 65536, 100  # what `http.client` takes
_STATUS = re.compile("[1-9][0-9]{2}(?![0-9])")
_IDLE_SECONDS = 2.0  # servers close idle connections (uvicorn: after 5 s); be first

Timeouts = Mapping[str, float | None]

Place = tuple[str, str, int]
"""Scheme, host and port."""


class Body(Protocol):
    """What a request sends."""

    def groups(self) -> Iterator[Sequence[bytes | memoryview]]:
        """Yield what is to be written at a time."""


@dataclass
class _Idle:
    connection: socket.socket
    since: float


@dataclass
class _Sent:
    place: Place
    method: str
    target: str
    headers: Iterable[tuple[str, str]]
    groups: Iterable[Sequence[bytes | memoryview]]


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
        self._idle: dict[Place, list[_Idle]] = {}
        self._lock = threading.Lock()

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        """Send a request; the answer's body is read while it is iterated over.

        Raises:
            httpx.TransportError: as httpx's own transport.
        """
        stream = cast(httpx.SyncByteStream, request.stream)
        target, headers = request.url.raw_path.decode("ascii"), request.headers.multi_items()
        groups = ([chunk] for chunk in stream)
        sent = _Sent(_place(request.url), request.method, target, headers, groups)
        answer, body = self.exchange(sent, request.extensions)
        return httpx.Response(
            answer.status,
            headers=answer.lines,
            stream=body,
            extensions={"http_version": b"HTTP/1.1"},
        )

    def exchange(self, sent: _Sent, extensions: Mapping[str, Any]) -> tuple["_Answer", "_Body"]:
        """Send a request; return the head of its answer, and its body, still to be read."""
        timeouts: Timeouts = extensions.get("timeout", {})
        connection = self._take(sent.place) or self._connect(sent.place, timeouts)
        answer = _Answer(connection, method=sent.method)

        def limit(what: str = "read") -> None:
            connection.settimeout(timeouts.get(what))

        try:
            _send(connection, sent, limit)
            with _told(httpx.ReadTimeout, httpx.ReadError):
                limit()
                answer.begin()
        except BaseException:
            answer.close()
            connection.close()
            raise
        take: Take | None = extensions.get(BUFFERS)
        view = None
        if take is not None and answer.length is not None:
            view = take(answer.fields.get("content-type", ""), answer.length)

        def done() -> None:
            if answer.length == 0:
                answer.read()  # nothing, and then it knows that it has ended
            if answer.will_close or not answer.isclosed():
                answer.close()
                connection.close()
            else:
                self._give_back(sent.place, connection)

        return answer, _Body(answer, view, limit, done)

    def close(self) -> None:
        """Close every idle connection."""
        with self._lock:
            idle = [each for several in self._idle.values() for each in several]
            self._idle.clear()
        for each in idle:
            each.connection.close()

    def _take(self, place: Place) -> socket.socket | None:
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
            if fresh and not select.select([connection], [], [], 0)[0]:
                return connection
            connection.close()

    def _give_back(self, place: Place, connection: socket.socket) -> None:
        with self._lock:
            self._idle.setdefault(place, []).append(_Idle(connection, time.monotonic()))

    def _connect(self, place: Place, timeouts: Timeouts) -> socket.socket:
        scheme, host, port = place
        with _told(httpx.ConnectTimeout, httpx.ConnectError):
            connection = self._socket(host, port, timeouts.get("connect"))
            if scheme != "https":
                return connection
            try:
                return self._tls().wrap_socket(connection, server_hostname=host)
            except BaseException:
                connection.close()
                raise

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


class SocketClient:
    """What `httpx.Client.stream` does, without what one server's calls never need of it.

    No cookies, redirects, hooks or authentication: a call takes a third of the time.
    """

    def __init__(self, transport: SocketTransport) -> None:
        """Speak through a transport, which is closed with this."""
        self._transport = transport

    @contextmanager
    def stream(
        self,
        method: str,
        url: str,
        *,
        params: Mapping[str, str] | None = None,
        headers: Mapping[str, str] | None = None,
        content: Body | None = None,
        extensions: Mapping[str, Any] | None = None,
        follow_redirects: bool = False,
    ) -> Iterator[httpx.Response]:
        """Send a request, and yield what `Link` reads of a response; see `httpx.Client.stream`."""
        place, host, target = _located(url)
        query = f"?{urlencode(params)}" if params else ""
        extensions = extensions or {}
        # the default, and said all the same: what stands between may look for the line to change it
        lines = {"Host": host, "User-Agent": _AGENT, "Connection": "keep-alive", **(headers or {})}
        groups = content.groups() if content else ()
        sent = _Sent(place, method, target + query, lines.items(), groups)
        answer, body = self._transport.exchange(sent, extensions)
        found = SimpleNamespace(
            status_code=answer.status,
            headers=answer.fields,
            request=SimpleNamespace(extensions=extensions),
            iter_raw=body.__iter__,
        )
        try:
            yield cast(httpx.Response, found)
        finally:
            body.close()

    def close(self) -> None:
        """Close every idle connection."""
        self._transport.close()


class _Answer(http.client.HTTPResponse):
    """An answer whose body `http.client` reads, and not its head: that takes the parser of mail.

    Attributes:
        lines: name and value of each line of the head.
        fields: the values by their names in lower case; of several, joined by commas.
    """

    lines: Sequence[tuple[str, str]] = ()
    fields: Mapping[str, str] = MappingProxyType({})

    def __init__(self, connection: socket.socket, method: str) -> None:
        """Begin with nothing read."""
        super().__init__(connection, method=method)
        self._bodiless = method == "HEAD"

    def begin(self) -> None:
        """Read the head.

        Raises:
            http.client.HTTPException: it is none.
        """
        while self._read_head() == http.HTTPStatus.CONTINUE:
            pass
        fields = self.fields
        connection = fields.get("connection", "").lower()
        kept = "close" not in connection if self.version == 11 else "keep-alive" in connection
        self.chunked = fields.get("transfer-encoding", "").lower() == "chunked"
        self.chunk_left = None
        length = fields.get("content-length", "")
        self.length = int(length) if length.isascii() and length.isdigit() else None
        if self.chunked:
            self.length = None
        if self.status in (204, 304) or self._bodiless:
            self.length = 0
        self.will_close = not kept or (self.length is None and not self.chunked)

    def _read_head(self) -> int:
        version, _, rest = self._line().partition(" ")
        if version not in ("HTTP/1.0", "HTTP/1.1") or not _STATUS.match(rest):
            raise http.client.BadStatusLine(f"{version} {rest:.80}")
        self.version = 11 if version == "HTTP/1.1" else 10
        self.status = self.code = int(rest[:3])
        lines: list[tuple[str, str]] = []
        fields: dict[str, str] = {}
        while line := self._line():
            name, colon, value = line.partition(":")
            if not colon or not name or not name[0].isalnum() or len(lines) == _LINES:
                raise http.client.HTTPException(f"the head has the line {line:.80}")
            lines.append((name, value.strip()))
            known = fields.get(name.lower())
            fields[name.lower()] = lines[-1][1] if known is None else f"{known}, {lines[-1][1]}"
        self.lines, self.fields = lines, fields
        return self.status

    def _line(self) -> str:
        line = self.fp.readline(_LINE)
        if not line.endswith(b"\n"):
            if line:
                raise http.client.HTTPException(f"the head ends with {line[:80]!r}")
            raise http.client.RemoteDisconnected("the server hung up without an answer")
        return str(line, "latin-1").rstrip("\r\n")


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


def _send(connection: socket.socket, sent: _Sent, limit: Callable[[str], None]) -> None:
    lines = [f"{sent.method} {sent.target} HTTP/1.1"]
    lines += [f"{name}: {value}" for name, value in sent.headers]
    head = "\r\n".join([*lines, "\r\n"])
    if head.count("\r") != len(lines) + 1 or head.count("\n") != len(lines) + 1:
        raise ValueError("a line of the request's head holds a line break")
    before: Sequence[bytes | memoryview] = [head.encode("latin-1")]
    with _told(httpx.WriteTimeout, httpx.WriteError):
        limit("write")
        try:
            for group in sent.groups:
                if before and sum(map(len, group)) > _SMALL:
                    _write(connection, before)  # is looked at while the rest is on its way
                    before = ()
                _write(connection, [*before, *group])
                before = ()
                limit("write")
            if before:
                _write(connection, before)
        except (BrokenPipeError, ConnectionResetError):
            pass  # a server may answer, and hang up, before it has taken the whole body


def _write(connection: socket.socket, parts: Sequence[bytes | memoryview]) -> None:
    """Write parts in one call, where TLS does not stand between: each wakes the other side."""
    done = 0 if isinstance(connection, ssl.SSLSocket) else connection.sendmsg(parts)
    for part in parts:
        if done < len(part):
            connection.sendall(memoryview(part)[done:])
        done = max(done - len(part), 0)


def _place(url: httpx.URL) -> Place:
    return url.scheme, url.host, url.port or (443 if url.scheme == "https" else 80)


@lru_cache(maxsize=256)
def _located(url: str) -> tuple[Place, str, str]:
    """Return where a URL leads to, the Host header and the target."""
    parsed = httpx.URL(url)
    return _place(parsed), parsed.netloc.decode("ascii"), parsed.raw_path.decode("ascii")


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
