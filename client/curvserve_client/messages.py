"""A request and its answer as plain values: no socket, no clock, no thread."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from torch import Tensor

from . import wire
from .errors import (
    ConnectionFailed,
    CurvserveError,
    MalformedBody,
    ProblemError,
    ProtocolError,
    from_problem,
)
from .types.fields import parse_json

JSON = "application/json"
PROBLEM = "application/problem+json"

_GATEWAY = (502, 503, 504)  # what proxies say of servers behind them; RFC 9110, section 15.6

T = TypeVar("T")


@dataclass(frozen=True)
class Answer:
    """What came back.

    Attributes:
        status: the HTTP status.
        headers: the headers, names in lower case.
        body: the whole body.
    """

    status: int
    headers: Mapping[str, str]
    body: bytearray | memoryview

    @property
    def media_type(self) -> str:
        """The content type without its parameters."""
        return self.headers.get("content-type", "").partition(";")[0].strip().lower()

    def json(self, media_type: str = JSON) -> dict[str, Any]:
        """Return the body as a JSON object.

        Raises:
            ProtocolError: another content type, or no JSON object.
        """
        self._check_media_type(media_type)
        document = parse_json(self.body)
        if not isinstance(document, dict):
            raise ProtocolError("the answer is not a JSON object")
        return document

    def tensors(self) -> tuple[dict[str, Tensor], dict[str, str]]:
        """Return the body's tensors, as views of it, and its metadata.

        Raises:
            ProtocolError: another content type, or the body cannot be read.
        """
        self._check_media_type(wire.MEDIA_TYPE)
        try:
            return wire.decode(self.body)
        except MalformedBody as error:
            raise ProtocolError(f"the answer cannot be read: {error.detail}") from error

    def problem(self) -> CurvserveError:
        """Return the error that the server, or a proxy before it, tells.

        Raises:
            ProtocolError: another content type, or no JSON object.
        """
        if self.status in _GATEWAY and self.media_type != PROBLEM:
            return ConnectionFailed(f"a proxy answers {self.status}: the server cannot be reached")
        error = from_problem(self.json(PROBLEM), self.status)
        if isinstance(error, ProblemError):
            error.retry_after = _seconds(self.headers.get("retry-after", ""))
        return error

    def _check_media_type(self, expected: str) -> None:
        if self.media_type != expected:
            found = self.media_type or "no content type"
            raise ProtocolError(
                f"the answer {self.status} is {found} instead of {expected}; is this a curvserve?"
            )


@dataclass(frozen=True)
class Request(Generic[T]):
    """What to send, and how to read what comes back.

    Attributes:
        method: the HTTP method.
        path: the escaped path, from the server's root.
        purpose: what is waited for, in words, for the errors.
        parse: a successful answer -> the result.
        query: the query parameters.
        headers: the headers, without Content-Length.
        parts: the body's parts.
        repeatable: whether it may be sent again where no answer came: it changes nothing, or
            carries an idempotency key.
        sent: called whenever the whole body has been sent.
        not_yet: a problem that others are to end soon: the request is made again until then.
    """

    method: str
    path: str
    purpose: str
    parse: Callable[[Answer], T]
    query: Mapping[str, str] = field(default_factory=dict)
    headers: Mapping[str, str] = field(default_factory=dict)
    parts: Sequence[memoryview] = ()
    repeatable: bool = True
    sent: Callable[[], None] = lambda: None
    not_yet: type[ProblemError] | None = None

    def read(self, answer: Answer) -> T:
        """Return the result that an answer holds.

        Raises:
            ProblemError: the server refused; one class per code.
            ProtocolError: the answer is not what the contract says.
        """
        try:
            if 200 <= answer.status < 300:
                return self.parse(answer)
            problem = answer.problem()
        except ProtocolError as error:
            raise ProtocolError(f"{self.purpose}: {error}") from error
        raise problem


def _seconds(text: str) -> float | None:
    return float(text) if text.isascii() and text.isdigit() else None
