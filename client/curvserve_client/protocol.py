"""The calls of the HTTP contract: what each sends, and what its answer becomes.

Each function returns a `Request`; a transport sends it, and `Request.read` turns whatever the
server says into a record or into a typed error.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any, Literal
from urllib.parse import quote

from torch import Tensor

from . import wire
from .errors import ProtocolError
from .messages import JSON, PROBLEM, Answer, Request
from .types import CurvatureResult, EvaluateResult, ModelSpec, SessionInfo, StepResult
from .types.fields import parse_json, records, whole

Version = int | Literal["*"]
"""What If-Match names: a version, or whatever is current."""


def list_models() -> Request[list[ModelSpec]]:
    """Ask for every model that is served."""

    def parse(answer: Answer) -> list[ModelSpec]:
        return [ModelSpec.from_dict(model) for model in records(answer.json(), "models")]

    return Request("GET", "/v1/models", "the list of models", parse, headers=_accept(JSON))


def get_model(name: str) -> Request[ModelSpec]:
    """Ask for one model's specification."""
    return Request(
        "GET",
        f"/v1/models/{_escape(name)}",
        f"the model {name!r}",
        lambda answer: ModelSpec.from_dict(answer.json()),
        headers=_accept(JSON),
    )


def list_sessions() -> Request[list[SessionInfo]]:
    """Ask for every session."""

    def parse(answer: Answer) -> list[SessionInfo]:
        return [SessionInfo.from_dict(session) for session in records(answer.json(), "sessions")]

    return Request("GET", "/v1/sessions", "the list of sessions", parse, headers=_accept(JSON))


def create_session(
    model: str, name: str | None, seed: int | None, rule: Mapping[str, Any] | None
) -> Request[SessionInfo]:
    """Ask for a new session; what is None is left to the server."""
    wanted = {"model": model, "name": name, "seed": seed, "rule": rule}
    document = {member: value for member, value in wanted.items() if value is not None}
    return Request(
        "POST",
        "/v1/sessions",
        f"a new session of {model!r}",
        _session_info,
        headers=_accept(JSON) | {"Content-Type": JSON},
        parts=[memoryview(json.dumps(document).encode())],
    )


def get_session(session: str) -> Request[SessionInfo]:
    """Ask how a session is."""
    purpose = f"the session {session!r}"
    return Request("GET", _path(session), purpose, _session_info, headers=_accept(JSON))


def delete_session(session: str) -> Request[None]:
    """Ask for the end of a session."""
    return Request("DELETE", _path(session), f"the end of session {session!r}", lambda answer: None)


def get_parameters(session: str) -> Request[tuple[dict[str, Tensor], int]]:
    """Ask for a session's parameters and their version."""

    def parse(answer: Answer) -> tuple[dict[str, Tensor], int]:
        tensors, metadata = answer.tensors()
        return tensors, whole({"version": parse_json(metadata.get("version", ""))}, "version")

    return Request(
        "GET",
        _path(session, "parameters"),
        f"the parameters of session {session!r}",
        parse,
        headers=_accept(wire.MEDIA_TYPE),
    )


def put_parameters(
    session: str, tensors: Mapping[str, Tensor], version: Version, key: str
) -> Request[int]:
    """Send a session's parameters; the answer is their version.

    Args:
        session: the session's name.
        tensors: parameter name -> tensor.
        version: the version that is to be replaced; "*" for whatever is there.
        key: the idempotency key.
    """
    return Request(
        "PUT",
        _path(session, "parameters"),
        f"new parameters in session {session!r}",
        lambda answer: whole(answer.json(), "version"),
        headers=_accept(JSON) | _change(version, key) | {"Content-Type": wire.MEDIA_TYPE},
        parts=wire.encode(tensors),
    )


def evaluate(session: str, inputs: Tensor, targets: Tensor) -> Request[EvaluateResult]:
    """Ask for loss and metrics of a batch."""
    return Request(
        "POST",
        _path(session, "evaluate"),
        f"the loss of a batch in session {session!r}",
        lambda answer: EvaluateResult.from_dict(answer.json()),
        headers=_accept(JSON) | {"Content-Type": wire.MEDIA_TYPE},
        parts=_batch(inputs, targets),
    )


def curvature(
    session: str,
    inputs: Tensor,
    targets: Tensor,
    quantities: Sequence[str],
    mc_samples: int,
    version: int | None,
) -> Request[CurvatureResult]:
    """Ask for quantities of a batch; with a version, only of these parameters."""

    def parse(answer: Answer) -> CurvatureResult:
        result = CurvatureResult.from_wire(*answer.tensors())
        if missing := set(quantities) - set(result.tensors):
            raise ProtocolError(f"the answer lacks {', '.join(sorted(missing))}")
        return result

    condition = {} if version is None else {"If-Match": _version_tag(version)}
    return Request(
        "POST",
        _path(session, "curvature"),
        f"{', '.join(quantities)} of a batch in session {session!r}",
        parse,
        query={"quantities": ",".join(quantities), "mc_samples": str(mc_samples)},
        headers=_accept(wire.MEDIA_TYPE) | condition | {"Content-Type": wire.MEDIA_TYPE},
        parts=_batch(inputs, targets),
    )


def step(
    session: str,
    inputs: Tensor,
    targets: Tensor,
    options: Mapping[str, float],
    version: Version,
    key: str,
) -> Request[StepResult]:
    """Ask for one step of the session's rule on a batch.

    Args:
        session: the session's name.
        inputs: the batch's inputs.
        targets: the batch's targets.
        options: options of the rule that this step overrides.
        version: the version that the step starts from; "*" for whatever is there.
        key: the idempotency key.
    """
    return Request(
        "POST",
        _path(session, "step"),
        f"a step of session {session!r}",
        lambda answer: StepResult.from_dict(answer.json()),
        query={option: json.dumps(value) for option, value in options.items()},
        headers=_accept(JSON) | _change(version, key) | {"Content-Type": wire.MEDIA_TYPE},
        parts=_batch(inputs, targets),
    )


def _escape(name: str) -> str:
    return quote(name, safe="")


def _path(session: str, noun: str = "") -> str:
    path = f"/v1/sessions/{_escape(session)}"
    return f"{path}/{noun}" if noun else path


def _accept(media_type: str) -> dict[str, str]:
    return {"Accept": f"{media_type}, {PROBLEM}"}


def _version_tag(version: Version) -> str:
    return version if version == "*" else f'"{version}"'


def _change(version: Version, key: str) -> dict[str, str]:
    return {"If-Match": _version_tag(version), "Idempotency-Key": key}


def _batch(inputs: Tensor, targets: Tensor) -> list[memoryview]:
    return wire.encode({"inputs": inputs, "targets": targets})


def _session_info(answer: Answer) -> SessionInfo:
    return SessionInfo.from_dict(answer.json())
