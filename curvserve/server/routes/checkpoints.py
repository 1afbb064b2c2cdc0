"""Checkpoints: versions that are kept under a name, for good."""

from dataclasses import asdict
from typing import Any

from curvserve_client.types import CheckpointSpec
from fastapi import APIRouter, Request
from pydantic import BaseModel, ConfigDict, Field
from starlette.responses import Response

from ...sessions.storage import CheckpointInfo
from ..answers import Parts, json_answer
from ..body import receive
from ..context import InContext, InSession
from ..documents import parse, request_body
from ..openapi import BODY, FILE, done, problems

router = APIRouter(prefix="/v1/sessions/{name}/checkpoints", tags=["checkpoints"])


class NewCheckpoint(BaseModel):
    """What is to be kept."""

    model_config = ConfigDict(extra="forbid", strict=True)

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")
    rule_state: bool = Field(True, description="Whether what the rule remembers is kept too.")


_DOCUMENT: dict[str, Any] = {"requestBody": request_body(NewCheckpoint)}


@router.get(
    "",
    summary="All checkpoints of a session",
    responses=problems("unknown_session", "storage_failed"),
)
async def list_checkpoints(session: InSession) -> Response:
    """Return every checkpoint, the oldest first."""
    found = [_specification(info).to_dict() for info in await session.checkpoints()]
    return json_answer({"checkpoints": found}, session.state.version)


@router.post(
    "",
    status_code=201,
    summary="Keep the current version",
    openapi_extra=_DOCUMENT,
    responses=done(CheckpointSpec, 201)
    | problems("unknown_session", *BODY, "invalid_request", "checkpoint_exists", "storage_failed"),
)
async def create_checkpoint(request: Request, session: InSession, context: InContext) -> Response:
    """Keep the current version under a name.

    The same call at the same version is answered alike; the name cannot be used for another one.
    """
    async with receive(request, context.limits, context.bodies, tensor_bytes=0) as body:
        wanted = parse(NewCheckpoint, body)
    info = await session.checkpoint(wanted.name, wanted.rule_state)
    answer = json_answer(_specification(info).to_dict(), info.version)
    answer.status_code = 201
    answer.headers["location"] = f"/v1/sessions/{session.name}/checkpoints/{info.name}"
    return answer


@router.get(
    "/{checkpoint}",
    summary="One checkpoint as a file",
    responses=FILE | problems("unknown_session", "unknown_checkpoint", "storage_failed"),
)
async def get_checkpoint(checkpoint: str, session: InSession) -> Response:
    """Return a safetensors file: `parameters.<name>`, `buffers.<name>`, `rule.<slot>.<name>`.

    Its metadata say version, seed, rule and options.
    """
    body = await session.read_checkpoint(checkpoint)
    headers = {"content-disposition": f'attachment; filename="{checkpoint}.safetensors"'}
    return Parts([memoryview(body)], headers)


def _specification(info: CheckpointInfo) -> CheckpointSpec:
    return CheckpointSpec(**asdict(info))
