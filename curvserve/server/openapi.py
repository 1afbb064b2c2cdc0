"""The OpenAPI document: every problem of every route, and who may call it."""

from collections.abc import Mapping
from typing import Any

from curvserve_client import wire
from curvserve_client.errors import PROBLEMS
from fastapi import FastAPI

from ..api_keys import Scope
from .body import JSON
from .problems import MEDIA_TYPE
from .route_table import SCOPES

Responses = dict[int | str, dict[str, Any]]
"""What FastAPI takes as a route's `responses`."""

TENSORS: dict[str, Any] = {wire.MEDIA_TYPE: {"schema": {"type": "string", "format": "binary"}}}
"""A body of tensors, in OpenAPI's words."""

FILE: Responses = {200: {"content": TENSORS}}
"""The `responses` of a route that answers with a file of tensors."""

_NESTED_LISTS: dict[str, Any] = {
    JSON: {
        "schema": {
            "type": "object",
            "required": ["version", "tensors"],
            "properties": {"version": {"type": "integer"}, "tensors": {"type": "object"}},
        }
    }
}

FILE_OR_JSON: Responses = {200: {"content": TENSORS | _NESTED_LISTS}}
"""The `responses` of a route that answers with tensors as its caller accepts them."""

BODY = (
    "malformed_body",
    "length_required",
    "body_too_large",
    "unsupported_media_type",
    "deadline_exceeded",
    "overloaded",
    "draining",
)
"""What a route that receives a body can answer."""

CHANGE = (
    "missing_idempotency_key",
    "missing_version",
    "invalid_request",
    "in_flight",
    "key_reused",
    "stale_version",
)
"""What a route that changes a session, exactly once, can answer."""

LENT = ("no_device", "workers_lost", "session_lost")
"""What a route that needs a state can answer where devices are lent to sessions."""

WORK = ("overloaded", "quota_exceeded", "draining", "deadline_exceeded", "storage_failed", *LENT)
"""What a route that queues work can answer."""

_PROBLEM: dict[str, Any] = {
    "title": "Problem",
    "description": "RFC 9457, with a stable code.",
    "type": "object",
    "required": ["type", "title", "status", "detail", "code", "request_id"],
    "properties": {
        "type": {"type": "string", "description": "urn:curvserve:problem: and the code."},
        "title": {"type": "string", "description": "The same for every occurrence."},
        "status": {"type": "integer"},
        "detail": {"type": "string", "description": "What happened this time."},
        "code": {"type": "string", "enum": list(PROBLEMS)},
        "request_id": {"type": "string", "description": "To be found in the server's log."},
        "tensor": {"type": "string", "description": "The tensor at fault."},
        "expected": {"type": "string", "description": "What would have been right."},
    },
}


def done(kind: type, status: int = 200) -> Responses:
    """Return the `responses` of a route that answers with a document.

    Args:
        kind: what the document is.
        status: the answer's status.
    """
    return {status: {"model": kind}}


def problems(*codes: str) -> Responses:
    """Return the `responses` of a route that can answer these problems.

    Args:
        codes: keys of `PROBLEMS`. That a key is needed (401, 403), and that the server may fail
            (500), is said of every route without being named.
    """
    by_status: dict[int, list[str]] = {}
    for code in dict.fromkeys(codes):
        by_status.setdefault(PROBLEMS[code].status, []).append(code)
    return {status: _response(codes) for status, codes in sorted(by_status.items())}


def document(app: FastAPI) -> None:
    """Have an application tell its problems and its API keys at /openapi.json."""
    plain = app.openapi

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            _complete(plain())  # which keeps what it returns
        return plain()

    app.openapi = openapi  # type: ignore[method-assign]  # the way that FastAPI documents


def _complete(schema: dict[str, Any]) -> None:
    components = schema.setdefault("components", {})
    components.setdefault("schemas", {})["Problem"] = _PROBLEM
    components["securitySchemes"] = {"api_key": {"type": "http", "scheme": "bearer"}}
    for name in ("HTTPValidationError", "ValidationError"):
        components["schemas"].pop(name, None)
    for path, operations in schema["paths"].items():
        for method, operation in operations.items():
            _complete_operation(operation, SCOPES[f"{method.upper()} {path}"])


def _complete_operation(operation: dict[str, Any], scope: Scope | None) -> None:
    responses = operation["responses"]
    if MEDIA_TYPE not in responses.get("422", {}).get("content", {}):
        responses.pop("422", None)  # FastAPI's own, which is never answered here
    common = ["internal"]
    if scope is not None:
        common += ["unauthorized", "forbidden"]
        operation["security"] = [{"api_key": [str(scope)]}]
    said: Mapping[int | str, Any] = problems(*common)
    operation["responses"] = responses | {str(status): each for status, each in said.items()}


def _response(codes: list[str]) -> dict[str, Any]:
    schema = {
        "allOf": [
            {"$ref": "#/components/schemas/Problem"},
            {"properties": {"code": {"enum": codes}}},
        ]
    }
    description = "; ".join(f"`{code}`: {PROBLEMS[code].title}" for code in codes)
    return {"description": description, "content": {MEDIA_TYPE: {"schema": schema}}}
