"""What is computed from a batch: loss, curvature, a fused step."""

from collections.abc import Mapping
from typing import Annotated

import torch
from curvserve_client.errors import InvalidRequest, UnknownQuantity
from curvserve_client.types import EvaluateResult, StepResult
from fastapi import APIRouter, Query, Request
from starlette.responses import Response

from ...models.support import SERVED
from ...sessions import Tensors
from .. import preconditions
from ..answers import json_answer, tensor_answer
from ..batches import BATCH, receive_batch
from ..changes import OPTIONS, change_of, options_of, receipt_answer
from ..context import InContext, InSession
from ..direct import DirectRoute
from ..openapi import BODY, CHANGE, FILE_OR_JSON, WORK, done, problems
from ..preconditions import PRECONDITION, PRECONDITIONS

router = APIRouter(prefix="/v1/sessions/{name}", tags=["compute"], route_class=DirectRoute)

MAX_MC_SAMPLES = 1024

COMPUTE = ("unknown_session", *BODY, *WORK, "invalid_batch", "non_finite", "out_of_memory")


@router.post(
    "/evaluate",
    summary="Loss and metrics",
    openapi_extra=BATCH,
    responses=done(EvaluateResult) | problems(*COMPUTE),
)
async def evaluate(request: Request, session: InSession, context: InContext) -> Response:
    """Return loss and metrics of a batch in evaluation mode; changes nothing."""
    async with receive_batch(request, session, context) as arrived:
        result = await session.evaluate(arrived.read, arrived.caller)
    return json_answer(result.to_dict(), result.version)


@router.post(
    "/curvature",
    summary="Gradient and curvature",
    openapi_extra=BATCH | PRECONDITION,
    responses=FILE_OR_JSON
    | problems(*COMPUTE, "unknown_quantity", "invalid_request", "stale_version"),
)
async def curvature(
    request: Request,
    session: InSession,
    context: InContext,
    quantities: str = "grad,diag_ggn_mc",
    mc_samples: Annotated[int, Query(ge=1, le=MAX_MC_SAMPLES)] = 1,
    bfloat16: str = "",
) -> Response:
    """Return tensors `<quantity>.<parameter>` of a batch; changes nothing.

    The draws come from the session's seed and version: the same batch gives the same numbers.
    `bfloat16` names the quantities that are to be sent as bfloat16, rounded to nearest: half the
    bytes.
    """
    _refuse_others(request, "quantities", "mc_samples", "bfloat16")
    wanted = _quantities(quantities)
    rounded = _rounded(bfloat16, wanted)
    expected = preconditions.optional_version(request)
    async with receive_batch(request, session, context) as arrived:
        result = await session.curvature(arrived.read, wanted, mc_samples, expected, arrived.caller)
    found, metadata = result.to_wire()
    return await tensor_answer(request, _round(found, rounded), metadata, result.version)


@router.post(
    "/step",
    summary="One step of the rule",
    openapi_extra=BATCH | {"parameters": [*PRECONDITIONS["parameters"], OPTIONS]},
    responses=done(StepResult) | problems(*COMPUTE, *CHANGE, "invalid_rule", "unknown_quantity"),
)
async def step(request: Request, session: InSession, context: InContext) -> Response:
    """Compute and apply one step, exactly once; needs Idempotency-Key and If-Match.

    Every query parameter is an option of the session's rule, for this step alone.
    """
    change = change_of(request)
    options = options_of(request.query_params)
    async with receive_batch(request, session, context) as arrived:
        receipt = await session.step(change(arrived.body, arrived.caller), arrived.read, options)
    return receipt_answer(session, receipt)


def _quantities(text: str) -> list[str]:
    wanted = [name for name in dict.fromkeys(text.split(",")) if name]
    unknown = [name for name in wanted if name not in SERVED]
    if unknown or not wanted:
        served = ", ".join(SERVED)
        named = ", ".join(unknown) or "nothing"
        raise UnknownQuantity(f"{named} cannot be served", expected=served)
    return wanted


def _rounded(text: str, wanted: list[str]) -> set[str]:
    rounded = {name for name in text.split(",") if name}
    if strange := sorted(rounded.difference(wanted)):
        message = f"bfloat16 names {', '.join(strange)}, which is not asked for"
        raise InvalidRequest(message, expected=", ".join(wanted))
    return rounded


def _round(tensors: Tensors, quantities: set[str]) -> Tensors:
    return {
        name: tensor.to(torch.bfloat16) if name.partition(".")[0] in quantities else tensor
        for name, tensor in tensors.items()
    }


def _refuse_others(request: Request, *known: str) -> None:
    """Refuse misspelt query parameters, which would otherwise be ignored in silence."""
    given: Mapping[str, str] = request.query_params
    for name in given:
        if name not in known:
            raise InvalidRequest(f"unknown query parameter {name!r}", expected=", ".join(known))
