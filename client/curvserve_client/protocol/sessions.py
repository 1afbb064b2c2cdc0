"""Calls about sessions as a whole."""

import json
from collections.abc import Mapping
from typing import Any

from ..messages import JSON, Answer, Request
from ..types import SessionInfo
from ..types.fields import records
from .common import DOCUMENT, accept, path


def list_sessions() -> Request[list[SessionInfo]]:
    """Ask for every session."""

    def parse(answer: Answer) -> list[SessionInfo]:
        return [SessionInfo.from_dict(session) for session in records(answer.json(), "sessions")]

    return Request("GET", "/v1/sessions", "the list of sessions", parse, headers=accept(JSON))


def create_session(
    model: str,
    name: str | None,
    seed: int | None,
    rule: Mapping[str, Any] | None,
    from_checkpoint: str | None = None,
) -> Request[SessionInfo]:
    """Ask for a new session; what is None is left to the server."""
    wanted = {
        "model": model,
        "name": name,
        "seed": seed,
        "rule": rule,
        "from_checkpoint": from_checkpoint,
    }
    document = {member: value for member, value in wanted.items() if value is not None}
    return Request(
        "POST",
        "/v1/sessions",
        f"a new session of {model!r}",
        _session_info,
        headers=accept(JSON) | DOCUMENT,
        parts=[memoryview(json.dumps(document).encode())],
        repeatable=False,
    )


def get_session(session: str) -> Request[SessionInfo]:
    """Ask how a session is."""
    purpose = f"the session {session!r}"
    return Request("GET", path(session), purpose, _session_info, headers=accept(JSON))


def delete_session(session: str) -> Request[None]:
    """Ask for the end of a session."""
    purpose = f"the end of session {session!r}"
    return Request("DELETE", path(session), purpose, lambda answer: None, repeatable=False)


def _session_info(answer: Answer) -> SessionInfo:
    return SessionInfo.from_dict(answer.json())
