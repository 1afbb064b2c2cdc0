"""The one table of error codes: what the server answers and what the client raises.

Each code of the HTTP contract is one class here. The server raises it, puts it on the wire as an
RFC 9457 problem document (`problem_document`), and the client raises the same class again
(`from_problem`). Errors that have no answer behind them (no connection, a deadline that passed on
this side, an answer that breaks the contract) are the other subclasses of `CurvserveError`.
"""

from collections.abc import Mapping
from typing import Any, ClassVar


class CurvserveError(Exception):
    """Base of everything this package raises on purpose."""


class ConnectionFailed(CurvserveError, ConnectionError):
    """No answer came: the connection broke before the answer had ended, or there was none."""


class Unreachable(ConnectionFailed):
    """No connection could be made, so nothing was sent: nothing listens there, or not yet again."""


class DeadlinePassed(CurvserveError, TimeoutError):
    """The caller's own deadline passed; the message says what was waited for."""


class ProtocolError(CurvserveError):
    """An answer came that the contract does not allow: another service, or another version."""


class PipelineBroken(CurvserveError, RuntimeError):
    """A step was not made, because one sent before it was refused or got no answer."""


class ParameterMismatch(CurvserveError, ValueError):
    """A module's parameters differ from the session's in name, shape or dtype."""


class ProblemError(CurvserveError):
    """One code of the contract, the base of all of them.

    Attributes:
        code: the stable name of the problem, the key of `PROBLEMS`.
        status: the HTTP status that it is answered with.
        title: the problem in one line, the same for every occurrence.
        advice: what the caller can do about it; empty where the detail says it all.
        detail: what happened this time.
        request_id: the request it happened in, to be found in the server's log.
        tensor: the tensor at fault, where there is one.
        expected: what would have been right, where that helps.
        retry_after: seconds after which a retry makes sense, where the server knows.
    """

    code: ClassVar[str] = ""
    status: ClassVar[int] = 0
    title: ClassVar[str] = ""
    advice: ClassVar[str] = ""

    def __init__(
        self,
        detail: str,
        *,
        request_id: str | None = None,
        tensor: str | None = None,
        expected: str | None = None,
        retry_after: float | None = None,
    ) -> None:
        """Keep the one positional argument in `args`, so that pickling needs no code of its own.

        Args:
            detail: what happened this time.
            request_id: the request it happened in.
            tensor: the name of the tensor at fault.
            expected: what would have been right.
            retry_after: seconds after which a retry makes sense.
        """
        super().__init__(detail)
        self.detail = detail
        self.request_id = request_id
        self.tensor = tensor
        self.expected = expected
        self.retry_after = retry_after

    def __str__(self) -> str:
        """Return the detail, what would have been right, and what to do about it."""
        expected = f"; expected {self.expected}" if self.expected else ""
        advice = f" ({self.advice})" if self.advice else ""
        return self.detail + expected + advice


class InvalidBatch(ProblemError):
    """The batch does not fit the model's specification."""

    code, status, title = "invalid_batch", 422, "The batch does not fit the model"


class UnknownQuantity(ProblemError):
    """A quantity was asked for that the model does not serve."""

    code, status, title = "unknown_quantity", 422, "The model does not serve this quantity"


class InvalidRule(ProblemError, ValueError):
    """No such update rule, or an option outside its range."""

    code, status, title = "invalid_rule", 422, "The update rule or one of its options is invalid"


class NonFinite(ProblemError):
    """Loss, gradient, curvature or the new parameters are not finite; nothing was changed."""

    code, status, title = "non_finite", 422, "The computation gave a value that is not finite"
    advice = "the session is unchanged; a smaller lr or a larger damping may help"


class MalformedBody(ProblemError):
    """The bytes are not what their content type says."""

    code, status, title = "malformed_body", 400, "The body cannot be read"


class MissingIdempotencyKey(ProblemError):
    """A call that changes parameters came without an Idempotency-Key."""

    code, status, title = "missing_idempotency_key", 400, "An Idempotency-Key header is needed"


class Unauthorized(ProblemError):
    """No API key, or one that is not known."""

    code, status, title = "unauthorized", 401, "A valid API key is needed"
    advice = "give connect or Client an api_key, or set CURVSERVE_API_KEY"


class Forbidden(ProblemError):
    """The API key does not allow this call."""

    code, status, title = "forbidden", 403, "This API key does not allow the call"


class UnknownModel(ProblemError):
    """No model of this name is registered."""

    code, status, title = "unknown_model", 404, "No such model"


class UnknownSession(ProblemError):
    """No session of this name exists."""

    code, status, title = "unknown_session", 404, "No such session"


class InFlight(ProblemError):
    """The same idempotency key is still being worked on."""

    code, status, title = "in_flight", 409, "The request with this idempotency key is still running"
    advice = "send it again with the same key to get its answer"


class NothingPending(ProblemError):
    """A step was asked for with no gradient pending."""

    code, status, title = "nothing_pending", 409, "No gradient is pending"
    advice = "send the batch again"


class StaleVersion(ProblemError):
    """If-Match names a version that is not the current one."""

    code, status, title = "stale_version", 412, "The session's parameters have another version"
    advice = "somebody else changed the session; read it again before going on"


class MissingVersion(ProblemError):
    """A call that changes parameters came without If-Match."""

    code, status, title = "missing_version", 428, "An If-Match header is needed"


class KeyReused(ProblemError):
    """An idempotency key came back with another request behind it."""

    code, status, title = "key_reused", 422, "This idempotency key belongs to another request"


class BodyTooLarge(ProblemError):
    """The body exceeds the server's cap."""

    code, status, title = "body_too_large", 413, "The body is too large"


class LengthRequired(ProblemError):
    """The request says neither how long its body is nor that it is chunked."""

    code, status, title = "length_required", 411, "A Content-Length header is needed"


class Overloaded(ProblemError):
    """The session's queue is full."""

    code, status, title = "overloaded", 429, "The session's queue is full"
    advice = "try again later"


class QuotaExceeded(ProblemError):
    """The API key has as many sessions, or requests under way, as it may have.

    `retry_after` is set where waiting helps: where requests of the key are to end.
    """

    code, status, title = "quota_exceeded", 429, "The API key's quota is reached"
    advice = "end a session or a request of this key, or ask the operator for a larger quota"


class DeadlineExceeded(ProblemError):
    """The server's own deadline for the request passed; nothing was changed."""

    code, status, title = "deadline_exceeded", 504, "The server's deadline passed"


class Draining(ProblemError):
    """The server is shutting down."""

    code, status, title = "draining", 503, "The server is shutting down"


class OutOfMemory(ProblemError):
    """The device has no memory left for this batch; nothing was changed."""

    code, status, title = "out_of_memory", 507, "The device has too little memory"
    advice = "the session is unchanged; send a smaller batch"


class NoDevice(ProblemError):
    """The session needs devices of its own, and none was free in time; nothing was changed."""

    code, status, title = "no_device", 503, "No device is free for the session"
    advice = "try again later, or have the operator add devices"


class WorkersLost(ProblemError):
    """The workers that computed for the session were lost again and again; nothing was changed."""

    code, status, title = "workers_lost", 503, "The session's workers were lost"
    advice = "send the request again; the server's log says what happened to them"


class SessionLost(ProblemError):
    """The session's state was lost with its workers, and nothing is stored to make it of again."""

    code, status, title = "session_lost", 410, "The session's state is lost"
    advice = "begin another session; --durability process or full keeps what workers compute"


class NotFound(ProblemError):
    """No such path."""

    code, status, title = "not_found", 404, "No such resource"


class MethodNotAllowed(ProblemError):
    """The path exists, the method does not."""

    code, status, title = "method_not_allowed", 405, "This method is not allowed here"


class InvalidRequest(ProblemError):
    """A JSON document, a header or a query parameter is not what the contract says."""

    code, status, title = "invalid_request", 422, "The request is invalid"


class SessionExists(ProblemError):
    """A session of this name exists already."""

    code, status, title = "session_exists", 409, "A session of this name exists"


class UnknownCheckpoint(ProblemError):
    """The session has no checkpoint of this name."""

    code, status, title = "unknown_checkpoint", 404, "No such checkpoint"


class CheckpointExists(ProblemError):
    """The session has another checkpoint of this name; checkpoints never change."""

    code, status, title = "checkpoint_exists", 409, "A checkpoint of this name exists"


class StorageFailed(ProblemError):
    """The server could not write to its data folder; what was acknowledged before is safe."""

    code, status, title = "storage_failed", 503, "The server's data folder cannot be written"
    advice = "its operator must mend the disk and restart it; then send the request again"


class UnsupportedMediaType(ProblemError):
    """The body's content type is none that this call takes."""

    code, status, title = "unsupported_media_type", 415, "This content type is not supported"


class InternalError(ProblemError):
    """A defect of the server; its log has the request id."""

    code, status, title = "internal", 500, "The server failed"
    advice = "report it with the request id"


_CLASSES: tuple[type[ProblemError], ...] = (
    InvalidBatch,
    UnknownQuantity,
    InvalidRule,
    NonFinite,
    MalformedBody,
    MissingIdempotencyKey,
    Unauthorized,
    Forbidden,
    UnknownModel,
    UnknownSession,
    InFlight,
    NothingPending,
    StaleVersion,
    MissingVersion,
    KeyReused,
    BodyTooLarge,
    LengthRequired,
    Overloaded,
    QuotaExceeded,
    DeadlineExceeded,
    Draining,
    OutOfMemory,
    NoDevice,
    WorkersLost,
    SessionLost,
    NotFound,
    MethodNotAllowed,
    InvalidRequest,
    SessionExists,
    UnknownCheckpoint,
    CheckpointExists,
    StorageFailed,
    UnsupportedMediaType,
    InternalError,
)

PROBLEMS: dict[str, type[ProblemError]] = {problem.code: problem for problem in _CLASSES}
"""Every code of the contract and its class, in the contract's order."""

_MEMBERS = ("request_id", "tensor", "expected")


def problem_document(error: ProblemError) -> dict[str, Any]:
    """Return an error as the members of an RFC 9457 problem document.

    Args:
        error: the error to tell.

    Returns:
        `type`, `title`, `status`, `detail` and `code`; `request_id`, `tensor` and `expected` where
        the error has them.
    """
    document: dict[str, Any] = {
        "type": f"urn:curvserve:problem:{error.code}",
        "title": error.title,
        "status": error.status,
        "detail": error.detail,
        "code": error.code,
    }
    known = {member: getattr(error, member) for member in _MEMBERS}
    return document | {member: value for member, value in known.items() if value is not None}


def from_problem(document: Mapping[str, Any], status: int) -> CurvserveError:
    """Return the error that a problem document tells.

    Args:
        document: the parsed JSON object.
        status: the status of the answer that carried it.

    Returns:
        The code's own class, or a `ProtocolError` where the code is not in the table.
    """
    code = document.get("code")
    detail = str(document.get("detail") or document.get("title") or f"status {status}")
    problem = PROBLEMS.get(code) if isinstance(code, str) else None
    if problem is None:
        return ProtocolError(f"the answer {status} has the unknown code {code!r}: {detail}")
    return problem(
        detail,
        request_id=_text(document.get("request_id")),
        tensor=_text(document.get("tensor")),
        expected=_text(document.get("expected")),
    )


def _text(value: object) -> str | None:
    return None if value is None else str(value)
