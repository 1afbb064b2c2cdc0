"""What a blocking and an asynchronous transport have in common: everything but the socket."""

import logging
import math
import os
import re
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, cast

import httpx

from . import wire
from .buffers import BufferPool
from .deadline import Deadline
from .errors import (
    ConnectionFailed,
    CurvserveError,
    DeadlinePassed,
    ProblemError,
    ProtocolError,
    Unreachable,
)
from .messages import Answer, Request
from .progress import Progress
from .retries import Attempt
from .sockets import BUFFERS

log = logging.getLogger("curvserve_client")

# servers close idle connections (uvicorn: after 5 s); be first, or a request may meet the end
LIMITS = httpx.Limits(keepalive_expiry=2.0)

ENVIRONMENT_KEY = "CURVSERVE_API_KEY"
"""Where an API key is looked for that was not given."""

_CHUNK = 256 * 1024
_MAX_DOCUMENT = 16 * 1024 * 1024
_KEY = re.compile(r"[\x21-\x7e]+")

_AWAITED = {
    httpx.ConnectTimeout: "a connection",
    httpx.PoolTimeout: "a free connection of its own pool",
    httpx.WriteTimeout: "the request to be taken",
}


class Link:
    """A server's address, how it is spoken to, and what was seen of it.

    Attributes:
        address: the server's URL, without a slash at its end.
        uds: the path of the Unix socket that the server listens on; None where it is a port.
        timeout: seconds that one call may take in all.
        acquainted: whether it has ever answered.
    """

    def __init__(
        self,
        url: str,
        timeout: float,
        http: httpx.Client | httpx.AsyncClient | None,
        api_key: str | None,
    ) -> None:
        """Check what was given; see `Transport`."""
        if not math.isfinite(timeout) or timeout <= 0:
            raise ValueError(f"timeout is {timeout!r}; expected a finite number of seconds > 0")
        self.address, self.uds = _checked(url)
        if self.uds is not None and http is not None:
            raise ValueError("a unix: URL has a client of its own; give no http with it")
        self._base = self.address if self.uds is None else "http://localhost"
        self.timeout = timeout
        self.acquainted = False
        self._authorization = _authorization(api_key, http)
        self._buffers = BufferPool()

    def call(self, attempts: "Attempts", *, awaiting: bool = False) -> dict[str, Any]:
        """Return a request as the arguments of `httpx.Client.stream`, or of the awaiting one."""
        request, deadline = attempts.request, attempts.deadline
        chunks = _AwaitedChunks if awaiting else _Chunks
        headers = {**request.headers, "Accept-Encoding": "identity", **self._authorization}
        if request.parts:
            headers["Content-Length"] = str(wire.length(request.parts))
        return {
            "method": request.method,
            "url": self._base + request.path,
            "params": request.query or None,
            "headers": headers,
            "content": chunks(attempts) if request.parts else None,
            "extensions": {"timeout": deadline.timeouts, BUFFERS: _Place(self._buffers).take},
            "follow_redirects": False,
        }

    def receiver(self, response: httpx.Response, attempts: "Attempts") -> "Receiver":
        """Return what takes the body of an answer that has begun.

        Raises:
            ProtocolError: the body is encoded as nobody asked for.
        """
        headers = {name.lower(): value for name, value in response.headers.items()}
        if (encoding := headers.get("content-encoding", "identity")) != "identity":
            raise ProtocolError(f"{attempts.request.purpose}: the answer is encoded as {encoding}")
        attempts.deadline.check("the rest of the answer")
        place: _Place = response.request.extensions[BUFFERS].__self__
        view = place.claimed()
        in_place = view is not None
        size = headers.get("content-length", "")
        attempts.progress.at("receiving", int(size) if size.isdigit() else 0)
        if not in_place and size.isdigit():
            place.take(headers.get("content-type", ""), int(size))
            view = place.claimed()
        return Receiver(response.status_code, headers, view, attempts, in_place=in_place)


class Attempts:
    """One call: its deadline, and how often it was tried.

    Attributes:
        request: what is sent.
        deadline: of all attempts together.
        progress: what is told of them where someone watches.
    """

    def __init__(self, link: Link, request: Request[Any]) -> None:
        """Start the clock."""
        self.deadline = Deadline(link.timeout, request.purpose, link.address)
        self.request = request
        self.progress = Progress(f"{request.purpose} from {link.address}")
        self._link = link
        self._number = 0
        self._last: CurvserveError | None = None

    @contextmanager
    def told(self) -> Iterator[None]:
        """Turn what httpx raises into this package's errors; note whether the server is there."""
        self.deadline.check("a connection")
        self.progress.at("waiting for the answer")
        about = f"{self.request.purpose} from {self._link.address}"
        try:
            yield
        except httpx.TimeoutException as error:
            raise self.deadline.passed(_AWAITED.get(type(error), "the answer")) from error
        except httpx.ConnectError as error:
            raise Unreachable(f"{about}: {error}") from error
        except httpx.TransportError as error:
            raise ConnectionFailed(f"{about}: {error}") from error
        except ProblemError:
            self._link.acquainted = True
            raise
        self._link.acquainted = True

    def pause(self, error: CurvserveError) -> float:
        """Return how long to wait before the next attempt.

        Raises:
            CurvserveError: the error itself, where there is none.
        """
        self._number += 1
        if isinstance(error, DeadlinePassed) and self._last is not None:
            error = self._last  # which says more than that time has passed since
        left = self.deadline.left
        request = self.request
        attempt = Attempt(
            self._number, request.repeatable, self._link.acquainted, left, request.not_yet
        )
        pause = attempt.pause(error)
        if pause is None or left <= 0:
            if self._number > 1:
                error.add_note(f"tried {self._number} times")
            raise error
        self._last = error
        if self._number == 1 and type(error) is not request.not_yet:
            self.progress.hide()
            log.warning("%s; trying again for %.0f s at most", error, left)
        self.progress.at(f"trying again ({type(error).__name__})")
        return pause


class _Place:
    """Where the body of one answer goes, if it is one of tensors."""

    def __init__(self, buffers: BufferPool) -> None:
        self._buffers = buffers
        self._view: memoryview | None = None

    def take(self, content_type: str, size: int) -> memoryview | None:
        """Return memory for a body of tensors; None for any other."""
        if content_type.startswith(wire.MEDIA_TYPE):
            self._view = self._buffers.take(size)
        return self._view

    def claimed(self) -> memoryview | None:
        """Return what was taken, and hold it no longer: a request outlives its answer."""
        view, self._view = self._view, None
        return view


class Receiver:
    """Takes the chunks of a body, into reused memory where its length is known."""

    def __init__(
        self,
        status: int,
        headers: Mapping[str, str],
        view: memoryview | None,
        attempts: Attempts,
        *,
        in_place: bool,
    ) -> None:
        """Prepare for a body.

        Args:
            status: the answer's status.
            headers: the answer's headers, names in lower case.
            view: where the body goes; None to gather it.
            attempts: whose deadline is looked at, and whose progress is noted, after each chunk.
            in_place: whether the chunks are pieces of the view already.
        """
        self._status = status
        self._headers = headers
        self._deadline, self._progress = attempts.deadline, attempts.progress
        self._view = view
        self._in_place = in_place
        tensors = headers.get("content-type", "").startswith(wire.MEDIA_TYPE)
        self._gathered = bytearray()
        self._position = 0
        self._limit = math.inf if tensors else _MAX_DOCUMENT

    def take(self, chunk: bytes) -> None:
        """Take the next chunk.

        Raises:
            ProtocolError: the body is longer than announced, or than any document.
            DeadlinePassed: no time is left.
        """
        end = self._position + len(chunk)
        if self._view is None:
            if end > self._limit:
                message = f"the answer is longer than {self._limit:.0f} bytes and holds no tensors"
                raise ProtocolError(message)
            self._gathered += chunk
        else:
            if end > len(self._view):
                size = len(self._view)
                raise ProtocolError(f"the answer is longer than the {size} bytes it announced")
            if not self._in_place:
                self._view[self._position : end] = chunk
        self._position = self._progress.done = end
        self._deadline.check("the rest of the answer")

    def answer(self) -> Answer:
        """Return the whole answer.

        Raises:
            ConnectionFailed: it is shorter than announced.
        """
        if self._view is None:
            return Answer(self._status, self._headers, self._gathered)
        if self._position < len(self._view):
            message = f"the answer broke off after {self._position} of {len(self._view)} bytes"
            raise ConnectionFailed(message)
        return Answer(self._status, self._headers, self._view)


class _Chunks:
    """A body's parts in chunks, with a look at the clock between them; may be sent again."""

    def __init__(self, attempts: Attempts) -> None:
        self._attempts = attempts

    def __iter__(self) -> Iterator[bytes]:
        for group in self.groups():
            yield from cast(Sequence[bytes], group)  # httpx only measures and joins

    def groups(self) -> Iterator[Sequence[memoryview]]:
        """Yield chunks that are sent together: small ones until they are as many bytes as one."""
        request, deadline = self._attempts.request, self._attempts.deadline
        progress = self._attempts.progress
        progress.at("sending", wire.length(request.parts))
        group: list[memoryview] = []
        size = 0
        for part in request.parts:
            for start in range(0, part.nbytes, _CHUNK):
                group.append(part[start : start + _CHUNK])
                size += len(group[-1])
                if size >= _CHUNK:
                    deadline.check("the request to be taken")
                    yield group
                    progress.done += size
                    group, size = [], 0
        if group:
            deadline.check("the request to be taken")
            yield group
            progress.done += size
        deadline.check("the answer")
        progress.at("waiting for the answer")
        request.sent()


class _AwaitedChunks:
    """The same for an event loop; httpx tells the two kinds apart by what they can do."""

    def __init__(self, attempts: Attempts) -> None:
        self._chunks = _Chunks(attempts)

    async def __aiter__(self) -> AsyncIterator[bytes]:
        for chunk in self._chunks:
            yield chunk


def _checked(url: str) -> tuple[str, str | None]:
    """Return a URL, and the path of the Unix socket that it names."""
    if url.startswith("unix:/"):
        return url, url.removeprefix("unix:")
    try:
        parsed = httpx.URL(url)
    except httpx.InvalidURL as error:
        raise ValueError(f"{url!r} is not a URL: {error}") from error
    if parsed.scheme not in ("http", "https") or not parsed.host:
        raise ValueError(f"{url!r} is not a server's URL; expected http://host:port")
    return url.rstrip("/"), None


def _authorization(
    key: str | None, http: httpx.Client | httpx.AsyncClient | None
) -> dict[str, str]:
    """Return the header with the API key; none where there is no key."""
    own = http is not None and (http.auth is not None or "authorization" in http.headers)
    if key is None and not own:
        key = os.environ.get(ENVIRONMENT_KEY) or None
    if key is None:
        return {}
    if not _KEY.fullmatch(key):  # said here, where the message does not hold it
        raise ValueError("the API key holds spaces, line breaks or characters that are not ASCII")
    return {"Authorization": f"Bearer {key}"}
