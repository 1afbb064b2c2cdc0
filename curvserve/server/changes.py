"""Requests that change a session: what they must say, and how they are answered."""

from collections.abc import Callable, Mapping
from typing import Any

from curvserve_client.errors import InvalidRule
from fastapi import Request
from starlette.responses import Response

from .. import sessions
from ..sessions import Receipt, Session
from . import answers, preconditions
from .answers import json_answer
from .body import Body
from .caller import Caller

Option = float | int | bool

OPTIONS: dict[str, Any] = {
    "name": "options",
    "in": "query",
    "style": "form",
    "explode": True,
    "description": "Options of the session's rule, for this step alone.",
    "schema": {"type": "object", "additionalProperties": {"type": ["number", "boolean"]}},
}
"""Query parameters of any name, in OpenAPI's words."""


def change_of(request: Request) -> Callable[[Body, Caller], sessions.Request]:
    """Return what makes the session's request of a body that has arrived.

    The headers are looked at now, before anything of the body is received.

    Raises:
        MissingIdempotencyKey: no Idempotency-Key.
        MissingVersion: no If-Match.
        InvalidRequest: one of them cannot be used.
    """
    key = preconditions.idempotency_key(request)
    expected = preconditions.required_version(request)

    def change(body: Body, caller: Caller) -> sessions.Request:
        return sessions.Request(key, body.fingerprint, expected, caller)

    return change


def receipt_answer(session: Session, receipt: Receipt) -> Response:
    """Return the answer of a change: what it came to, and how far the session is durable now."""
    document = receipt.answer | {"durable_version": session.durable_version}
    return json_answer(document, receipt.version, answers.Receipt)


def options_of(query: Mapping[str, str]) -> dict[str, Option]:
    """Return query parameters as options of the session's rule.

    Raises:
        InvalidRule: no such option, or no number.
    """
    return {name: _number(name, text) for name, text in query.items()}


def _number(name: str, text: str) -> Option:
    if text in ("true", "false"):
        return text == "true"
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    raise InvalidRule(f"{name} is {text!r}", expected="a number, true or false")
