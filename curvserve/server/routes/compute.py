"""What is computed from a batch: loss, curvature, a step."""

from collections.abc import Mapping
from functools import partial
from typing import Annotated, Any

from curvserve_client.errors import InvalidRequest, InvalidRule, UnknownQuantity
from curvserve_client.types import EvaluateResult, StepResult
from curvserve_client.wire import MEDIA_TYPE
from fastapi import APIRouter, Query, Request
from starlette.responses import Response

from ...models.batch import check_layout
from ...sessions import Change, Session, Tensors
from .. import preconditions, tensors
from ..answers import json_answer, tensor_answer
from ..body import JSON, Body, receive
from ..context import Context, InContext, InSession
from ..openapi import BODY, CHANGE, problems

router = APIRouter(prefix="/v1/sessions/{name}", tags=["compute"])

MAX_MC_SAMPLES = 1024

_COMPUTE = ("unknown_session", *BODY, "invalid_batch", "non_finite", "out_of_memory")

_BATCH: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "description": "The tensors `inputs` and `targets`, samples first.",
        "content": {
            MEDIA_TYPE: {"schema": {"type": "string", "format": "binary"}},
            JSON: {
                "schema": {
                    "type": "object",
                    "required": ["inputs", "targets"],
                    "properties": {"inputs": {"type": "array"}, "targets": {"type": "array"}},
                }
            },
        },
    }
}


@router.post(
    "/evaluate",
    summary="Loss and metrics",
    openapi_extra=_BATCH,
    responses={200: {"model": EvaluateResult}, **problems(*_COMPUTE)},
)
async def evaluate(request: Request, session: InSession, context: InContext) -> Response:
    """Return loss and metrics of a batch in evaluation mode; changes nothing."""
    batch = await _read(await _receive(request, session, context), session)
    result = await session.evaluate(batch)
    return json_answer(result.to_dict(), result.version)


@router.post(
    "/curvature",
    summary="Gradient and curvature",
    openapi_extra=_BATCH,
    responses={
        200: {"content": {MEDIA_TYPE: {}}},
        **problems(*_COMPUTE, "unknown_quantity", "invalid_request", "stale_version"),
    },
)
async def curvature(
    request: Request,
    session: InSession,
    context: InContext,
    quantities: str = "grad,diag_ggn_mc",
    mc_samples: Annotated[int, Query(ge=1, le=MAX_MC_SAMPLES)] = 1,
) -> Response:
    """Return tensors `<quantity>.<parameter>` of a batch; changes nothing.

    The draws come from the session's seed and version: the same batch gives the same numbers.
    """
    _refuse_others(request, "quantities", "mc_samples")
    wanted = _quantities(quantities, context, session)
    expected = preconditions.optional_version(request)
    batch = await _read(await _receive(request, session, context), session)
    result = await session.curvature(batch, wanted, mc_samples, expected)
    found, metadata = result.to_wire()
    return await tensor_answer(request, found, metadata, result.version)


@router.post(
    "/step",
    summary="One step of the rule",
    openapi_extra=_BATCH,
    responses={
        200: {"model": StepResult},
        **problems(*_COMPUTE, *CHANGE, "invalid_rule", "unknown_quantity"),
    },
)
async def step(request: Request, session: InSession, context: InContext) -> Response:
    """Compute and apply one step, exactly once; needs Idempotency-Key and If-Match.

    Every query parameter is an option of the session's rule, for this step alone.
    """
    key = preconditions.idempotency_key(request)
    expected = preconditions.required_version(request)
    options = _options(request.query_params)
    body = await _receive(request, session, context)
    change = Change(key, body.fingerprint, expected)
    receipt = await session.step(change, partial(_read, body, session), options)
    return json_answer(receipt.answer, receipt.version)


async def _receive(request: Request, session: Session, context: Context) -> Body:
    return await receive(request, context.limits, tensors.batch_bytes(session.model))


async def _read(body: Body, session: Session) -> Tensors:
    model = session.model
    dtypes = {"inputs": model.inputs.dtype, "targets": model.targets.dtype}
    return await tensors.read(body, partial(check_layout, model), dtypes)


def _quantities(text: str, context: Context, session: Session) -> list[str]:
    wanted = [name for name in dict.fromkeys(text.split(",")) if name]
    known = context.specifications[session.model.name].quantities
    unknown = [name for name in wanted if name not in known]
    if unknown or not wanted:
        served = ", ".join(known)
        named = ", ".join(unknown) or "nothing"
        raise UnknownQuantity(f"{named} cannot be served", expected=served)
    return wanted


def _refuse_others(request: Request, *known: str) -> None:
    """Refuse misspelt query parameters, which would otherwise be ignored in silence."""
    for name in request.query_params:
        if name not in known:
            raise InvalidRequest(f"unknown query parameter {name!r}", expected=", ".join(known))


def _options(query: Mapping[str, str]) -> dict[str, float]:
    try:
        return {name: float(value) for name, value in query.items()}
    except ValueError as error:
        raise InvalidRule(f"an option is no number: {error}", expected="numbers") from error
