"""What has happened in a session."""

from collections.abc import Mapping
from typing import Any

from ..messages import JSON, Answer, Request
from ..types.fields import records
from .common import accept, path


def history(session: str, after: int) -> Request[list[Mapping[str, Any]]]:
    """Ask for the steps behind a version."""

    def parse(answer: Answer) -> list[Mapping[str, Any]]:
        return records(answer.json(), "steps")

    purpose = f"the history of session {session!r}"
    query = {"after": str(after)}
    return Request("GET", path(session, "history"), purpose, parse, query, accept(JSON))
