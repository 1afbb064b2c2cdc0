"""Sends the protocol's requests over httpx: in chunks, into reused memory, within a deadline."""

import math
import os
import re
from collections.abc import Iterator, Sequence
from typing import Any, TypeVar, cast

import httpx

from . import wire
from .buffers import BufferPool
from .deadline import Deadline
from .errors import ConnectionFailed, ProtocolError
from .messages import Answer, Request

T = TypeVar("T")

_CHUNK = 256 * 1024
_MAX_DOCUMENT = 16 * 1024 * 1024
_KEY = re.compile(r"[\x21-\x7e]+")
ENVIRONMENT_KEY = "CURVSERVE_API_KEY"
"""Where an API key is looked for that was not given."""

_AWAITED = {
    httpx.ConnectTimeout: "a connection",
    httpx.PoolTimeout: "a free connection of its own pool",
    httpx.WriteTimeout: "the request to be taken",
}


class Transport:
    """One server, reached through one httpx client.

    Attributes:
        address: the server's URL, without a slash at its end.
        timeout: seconds that one call may take in all.
    """

    def __init__(
        self,
        url: str,
        timeout: float,
        http: httpx.Client | None = None,
        api_key: str | None = None,
    ) -> None:
        """Reach a server; nothing is sent yet.

        Args:
            url: `http://host:port` or `https://...`, with a path where a proxy needs one.
            timeout: seconds that one call may take in all.
            http: a client of the caller's own (TLS, authentication, proxies); it stays open.
            api_key: what the server knows the caller by; None for that of the environment, unless
                `http` has an authentication of its own.

        Raises:
            ValueError: the URL is not http or https, the timeout is not a finite number > 0, or the
                key holds what no key has.
        """
        if not math.isfinite(timeout) or timeout <= 0:
            raise ValueError(f"timeout is {timeout!r}; expected a finite number of seconds > 0")
        self.address = _checked(url)
        self.timeout = timeout
        self._owned = http is None
        self._http = _new_client() if http is None else http
        self._authorization = _authorization(api_key, http)
        self._buffers = BufferPool()

    def send(self, request: Request[T]) -> T:
        """Send a request and return what its answer holds.

        Raises:
            ProblemError: the server refused; one class per code.
            ConnectionFailed: nothing listens there, or the connection broke.
            DeadlinePassed: `timeout` passed.
            ProtocolError: the answer is not what the contract says.
        """
        deadline = Deadline(self.timeout, request.purpose, self.address)
        try:
            answer = self._exchange(request, deadline)
        except httpx.TimeoutException as error:
            raise deadline.passed(_AWAITED.get(type(error), "the answer")) from error
        except httpx.TransportError as error:
            raise ConnectionFailed(f"{request.purpose} from {self.address}: {error}") from error
        return request.read(answer)

    def close(self) -> None:
        """Close the connections, unless the client was given by the caller."""
        if self._owned:
            self._http.close()

    def _exchange(self, request: Request[T], deadline: Deadline) -> Answer:
        with self._http.stream(
            request.method,
            self.address + request.path,
            params=request.query or None,
            headers=_headers(request) | self._authorization,
            content=_Content(request.parts, deadline) if request.parts else None,
            extensions={"timeout": deadline.timeouts},
            follow_redirects=False,
        ) as response:
            headers = {name.lower(): value for name, value in response.headers.items()}
            if (encoding := headers.get("content-encoding", "identity")) != "identity":
                raise ProtocolError(f"{request.purpose}: the answer is encoded as {encoding}")
            return Answer(response.status_code, headers, self._receive(response, deadline))

    def _receive(self, response: httpx.Response, deadline: Deadline) -> bytearray | memoryview:
        size = response.headers.get("content-length", "")
        tensors = response.headers.get("content-type", "").startswith(wire.MEDIA_TYPE)
        if tensors and size.isdigit():
            return _fill(self._buffers.take(int(size)), response, deadline)
        return _gather(response, deadline, math.inf if tensors else _MAX_DOCUMENT)


class _Content:
    """The parts in chunks, with a look at the clock between them; may be sent again."""

    def __init__(self, parts: Sequence[memoryview], deadline: Deadline) -> None:
        self._parts = parts
        self._deadline = deadline

    def __iter__(self) -> Iterator[bytes]:
        for part in self._parts:
            for start in range(0, part.nbytes, _CHUNK):
                self._deadline.check("the request to be taken")
                yield cast(bytes, part[start : start + _CHUNK])  # httpx only measures and joins
        self._deadline.check("the answer")


def _new_client() -> httpx.Client:
    # servers close idle connections (uvicorn: after 5 s); be first, or a request may meet the end
    limits = httpx.Limits(keepalive_expiry=2.0)
    return httpx.Client(limits=limits)


def _checked(url: str) -> str:
    try:
        parsed = httpx.URL(url)
    except httpx.InvalidURL as error:
        raise ValueError(f"{url!r} is not a URL: {error}") from error
    if parsed.scheme not in ("http", "https") or not parsed.host:
        raise ValueError(f"{url!r} is not a server's URL; expected http://host:port")
    return url.rstrip("/")


def _authorization(key: str | None, http: httpx.Client | None) -> dict[str, str]:
    """Return the header with the API key; none where there is no key."""
    own = http is not None and (http.auth is not None or "authorization" in http.headers)
    if key is None and not own:
        key = os.environ.get(ENVIRONMENT_KEY) or None
    if key is None:
        return {}
    if not _KEY.fullmatch(key):  # said here, where the message does not hold it
        raise ValueError("the API key holds spaces, line breaks or characters that are not ASCII")
    return {"Authorization": f"Bearer {key}"}


def _headers(request: Request[Any]) -> dict[str, str]:
    headers = dict(request.headers) | {"Accept-Encoding": "identity"}
    return (
        headers | {"Content-Length": str(wire.length(request.parts))} if request.parts else headers
    )


def _fill(view: memoryview, response: httpx.Response, deadline: Deadline) -> memoryview:
    position = 0
    deadline.check("the rest of the answer")
    for chunk in response.iter_raw():
        end = position + len(chunk)
        if end > len(view):
            raise ProtocolError(f"the answer is longer than the {len(view)} bytes it announced")
        view[position:end] = chunk
        position = end
        deadline.check("the rest of the answer")
    if position < len(view):
        raise ConnectionFailed(f"the answer broke off after {position} of {len(view)} bytes")
    return view


def _gather(response: httpx.Response, deadline: Deadline, limit: float) -> bytearray:
    body = bytearray()
    deadline.check("the rest of the answer")
    for chunk in response.iter_raw():
        body += chunk
        if len(body) > limit:
            raise ProtocolError(f"the answer is longer than {limit:.0f} bytes and holds no tensors")
        deadline.check("the rest of the answer")
    return body
