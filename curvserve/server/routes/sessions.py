"""Sessions: begin, look at, end."""

from collections.abc import Mapping
from typing import Any

from curvserve_client.errors import InvalidRule
from curvserve_client.rules import DiagGGN, Rule, make_rule
from curvserve_client.types import SessionInfo
from fastapi import APIRouter, Request
from pydantic import BaseModel, ConfigDict, Field
from starlette.responses import Response

from ..answers import json_answer
from ..body import receive
from ..context import InContext, InSession
from ..documents import parse, request_body
from ..exchange import exchange_of
from ..openapi import BODY, done, problems

router = APIRouter(prefix="/v1/sessions", tags=["sessions"])


class NewSession(BaseModel):
    """What a session begins with; `rule` holds the rule's name and any of its options."""

    model_config = ConfigDict(extra="forbid", strict=True)

    model: str
    name: str | None = Field(None, min_length=1)
    seed: int | None = Field(None, ge=0, lt=2**63)
    rule: dict[str, str | bool | int | float] | None = None
    from_checkpoint: str | None = Field(None, description="`<session>/<checkpoint>`")


_DOCUMENT: dict[str, Any] = {"requestBody": request_body(NewSession)}


@router.post(
    "",
    status_code=201,
    summary="Begin a session",
    openapi_extra=_DOCUMENT,
    responses=done(SessionInfo, 201)
    | problems(
        *BODY,
        "unknown_model",
        "invalid_request",
        "invalid_rule",
        "session_exists",
        "quota_exceeded",
        "unknown_checkpoint",
        "storage_failed",
    ),
)
async def create_session(request: Request, context: InContext) -> Response:
    """Begin a session of a model.

    Its parameters are drawn from the seed and its version is 0; or it goes on where a checkpoint
    was, with the checkpoint's seed and rule unless others are given.
    """
    async with receive(request, context.limits, context.bodies, tensor_bytes=0) as body:
        wanted = parse(NewSession, body)
    session = await context.sessions.create(
        wanted.model,
        None if wanted.rule is None else _rule(wanted.rule),
        wanted.seed,
        wanted.name or "",
        wanted.from_checkpoint or "",
        exchange_of(request.scope).account,
    )
    answer = json_answer(session.describe().to_dict(), session.state.version)
    answer.status_code = 201
    answer.headers["location"] = f"/v1/sessions/{session.name}"
    return answer


@router.get("", summary="All sessions")
async def list_sessions(context: InContext) -> Response:
    """Return every session, the oldest first."""
    documents = [session.describe().to_dict() for session in context.sessions.list()]
    return json_answer({"sessions": documents})


@router.get(
    "/{name}",
    summary="One session",
    responses=done(SessionInfo) | problems("unknown_session"),
)
async def get_session(session: InSession) -> Response:
    """Return a session as it is now."""
    return json_answer(session.describe().to_dict(), session.state.version)


@router.delete(
    "/{name}",
    status_code=204,
    summary="End a session",
    responses=problems("unknown_session", "storage_failed"),
)
async def delete_session(session: InSession, context: InContext) -> Response:
    """End a session at once, with its checkpoints; a step that computes is not applied any more."""
    await context.sessions.delete(session.name)
    return Response(status_code=204)


def _rule(wanted: Mapping[str, str | bool | int | float]) -> Rule:
    name = str(wanted.get("name", DiagGGN.name))
    options = {option: value for option, value in wanted.items() if option != "name"}
    numbers = {key: value for key, value in options.items() if not isinstance(value, str)}
    if text := options.keys() - numbers.keys():
        raise InvalidRule(f"no number: {', '.join(sorted(text))}", expected="numbers")
    return make_rule(name, numbers)
