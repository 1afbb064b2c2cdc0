"""Sessions: begin, look at, end."""

from collections.abc import Mapping
from typing import Any

from curvserve_client.errors import InvalidRequest, InvalidRule
from curvserve_client.rules import DiagGGN, Rule, make_rule
from fastapi import APIRouter, Request
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from starlette.responses import Response

from ..answers import json_answer
from ..body import receive
from ..context import InContext, InSession
from ..openapi import BODY, problems
from ..problems import first_error
from ..tensors import parse_json

router = APIRouter(prefix="/v1/sessions", tags=["sessions"])


class NewSession(BaseModel):
    """What a session begins with; `rule` holds the rule's name and any of its options."""

    model_config = ConfigDict(extra="forbid", strict=True)

    model: str
    name: str | None = Field(None, min_length=1)
    seed: int = Field(0, ge=0, lt=2**63)
    rule: dict[str, str | float] = Field(default_factory=dict)


_BODY: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {
            "application/json": {"schema": NewSession.model_json_schema()},
        },
    }
}


@router.post(
    "",
    status_code=201,
    summary="Begin a session",
    openapi_extra=_BODY,
    responses=problems(*BODY, "invalid_request", "invalid_rule", "unknown_model", "session_exists"),
)
async def create_session(request: Request, context: InContext) -> Response:
    """Begin a session of a model at version 0; its parameters are drawn from the seed."""
    wanted = await _read(request, context)
    rule = _rule(wanted.rule)
    session = await context.sessions.create(wanted.model, rule, wanted.seed, wanted.name or "")
    answer = json_answer(session.describe().to_dict(), session.state.version)
    answer.status_code = 201
    answer.headers["location"] = f"/v1/sessions/{session.name}"
    return answer


@router.get("", summary="All sessions")
async def list_sessions(context: InContext) -> Response:
    """Return every session, the oldest first."""
    documents = [session.describe().to_dict() for session in context.sessions.list()]
    return json_answer({"sessions": documents})


@router.get("/{name}", summary="One session", responses=problems("unknown_session"))
async def get_session(session: InSession) -> Response:
    """Return a session as it is now."""
    return json_answer(session.describe().to_dict(), session.state.version)


@router.delete(
    "/{name}", status_code=204, summary="End a session", responses=problems("unknown_session")
)
async def delete_session(session: InSession, context: InContext) -> Response:
    """End a session once the change that it has under way is done."""
    await context.sessions.delete(session.name)
    return Response(status_code=204)


def _rule(wanted: Mapping[str, str | float]) -> Rule:
    name = str(wanted.get("name", DiagGGN.name))
    options = {option: value for option, value in wanted.items() if option != "name"}
    numbers = {key: value for key, value in options.items() if not isinstance(value, str)}
    if text := options.keys() - numbers.keys():
        raise InvalidRule(f"no number: {', '.join(sorted(text))}", expected="numbers")
    return make_rule(name, numbers)


async def _read(request: Request, context: InContext) -> NewSession:
    body = await receive(request, context.limits, tensor_bytes=0)
    try:
        return NewSession.model_validate(parse_json(body.data))
    except ValidationError as error:
        raise InvalidRequest(first_error(error.errors())) from error
