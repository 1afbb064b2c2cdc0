"""Parameters: read a version, or replace it."""

from functools import partial

from curvserve_client.wire import MEDIA_TYPE
from fastapi import APIRouter, Request
from starlette.responses import Response

from ...sessions import Change, Tensors
from .. import preconditions, tensors
from ..answers import etag, json_answer, tensor_answer
from ..body import receive
from ..context import InContext, InSession
from ..openapi import BODY, CHANGE, problems

router = APIRouter(prefix="/v1/sessions/{name}/parameters", tags=["parameters"])

_TENSORS = {"content": {MEDIA_TYPE: {"schema": {"type": "string", "format": "binary"}}}}


@router.get(
    "",
    summary="Read the parameters",
    responses={
        200: _TENSORS,
        304: {"description": "The caller has this version."},
        **problems("unknown_session", "invalid_request"),
    },
)
async def get_parameters(request: Request, session: InSession) -> Response:
    """Return every parameter of the current version; 304 where If-None-Match names it."""
    state = session.state
    if preconditions.has_version(request, state.version):
        return Response(status_code=304, headers={"etag": etag(state.version)})
    found = await session.parameters(state)
    return await tensor_answer(request, found, {"version": str(state.version)}, state.version)


@router.put(
    "",
    summary="Replace the parameters",
    openapi_extra={"requestBody": _TENSORS},
    responses=problems("unknown_session", *CHANGE, *BODY, "invalid_batch", "non_finite"),
)
async def put_parameters(request: Request, session: InSession, context: InContext) -> Response:
    """Replace every parameter, exactly once; needs Idempotency-Key and If-Match."""
    key = preconditions.idempotency_key(request)
    expected = preconditions.required_version(request)
    current = session.state.parameters
    body = await receive(request, context.limits, tensors.parameter_bytes(current))
    check = partial(tensors.check_parameters, current)
    dtypes = {name: tensor.dtype for name, tensor in current.items()}

    async def read() -> Tensors:
        return await tensors.read(body, check, dtypes)

    receipt = await session.load(Change(key, body.fingerprint, expected), read)
    return json_answer(receipt.answer, receipt.version)
