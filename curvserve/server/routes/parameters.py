"""Parameters: read a version, or replace it."""

from dataclasses import dataclass
from functools import partial
from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import Response

from .. import preconditions, tensors
from ..answers import etag, tensor_answer
from ..batches import receive_tensors
from ..body import JSON
from ..changes import change_of, receipt_answer
from ..context import InContext, InSession
from ..direct import DirectRoute
from ..openapi import BODY, CHANGE, FILE_OR_JSON, TENSORS, WORK, Responses, done, problems
from ..preconditions import CACHED, PRECONDITIONS

router = APIRouter(
    prefix="/v1/sessions/{name}/parameters", tags=["parameters"], route_class=DirectRoute
)


@dataclass(frozen=True)
class Replaced:
    """Parameters that were replaced.

    Attributes:
        version: their version.
    """

    version: int


_PARAMETERS: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "description": "Every parameter by its name.",
        "content": TENSORS
        | {
            JSON: {
                "schema": {"type": "object", "additionalProperties": {"type": ["array", "number"]}}
            }
        },
    }
}

_NOT_MODIFIED: Responses = {304: {"description": "The caller has this version."}}


@router.get(
    "",
    summary="Read the parameters",
    openapi_extra=CACHED,
    responses=FILE_OR_JSON | _NOT_MODIFIED | problems("unknown_session", "invalid_request"),
)
async def get_parameters(request: Request, session: InSession) -> Response:
    """Return every parameter of the current version; 304 where If-None-Match names it."""
    current = session.state.version
    if preconditions.has_version(request, current):
        return Response(status_code=304, headers={"etag": etag(current)})
    version, found = await session.parameters()
    return await tensor_answer(request, found, {"version": str(version)}, version)


@router.put(
    "",
    summary="Replace the parameters",
    openapi_extra=_PARAMETERS | PRECONDITIONS,
    responses=done(Replaced)
    | problems(
        "unknown_session",
        *CHANGE,
        *BODY,
        *WORK,
        "invalid_batch",
        "non_finite",
        "out_of_memory",
    ),
)
async def put_parameters(request: Request, session: InSession, context: InContext) -> Response:
    """Replace every parameter, exactly once; needs Idempotency-Key and If-Match."""
    change = change_of(request)
    current = session.state.parameters
    check = partial(tensors.check_parameters, current)
    dtypes = {name: tensor.dtype for name, tensor in current.items()}
    size = tensors.parameter_bytes(current)
    async with receive_tensors(request, session, context, size, check, dtypes) as arrived:
        receipt = await session.load(change(arrived.body, arrived.caller), arrived.read)
    return receipt_answer(session, receipt)
