"""A step in two halves: gradient and curvature of one or more batches, then the step itself."""

from typing import Any

from curvserve_client.types import ForwardBackwardResult, StepResult
from fastapi import APIRouter, Request
from pydantic import BaseModel, ConfigDict, Field
from starlette.responses import Response

from ..batches import BATCH, receive_batch
from ..body import receive
from ..caller import Caller
from ..changes import change_of, receipt_answer
from ..context import InContext, InSession
from ..documents import parse, request_body
from ..openapi import BODY, CHANGE, WORK, done, problems
from ..preconditions import PRECONDITIONS
from .compute import COMPUTE

router = APIRouter(prefix="/v1/sessions/{name}", tags=["compute"])


class OptimStep(BaseModel):
    """How the pending gradient becomes a step."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)

    options: dict[str, bool | int | float] = Field(
        default_factory=dict, description="Options of the session's rule, for this step alone."
    )
    scales: dict[str, float] = Field(
        default_factory=dict,
        description="Parameter -> what its gradient is multiplied by; 1 where it is absent.",
    )
    pending: int | None = Field(
        None, ge=1, description="How many batches must be pending; 409 where it is another number."
    )


@router.post(
    "/forward_backward",
    summary="Gradient and curvature that stay on the server",
    openapi_extra=BATCH | PRECONDITIONS,
    responses=done(ForwardBackwardResult) | problems(*COMPUTE, *CHANGE, "unknown_quantity"),
)
async def forward_backward(
    request: Request, session: InSession, context: InContext, accumulate: bool = False
) -> Response:
    """Compute what the session's rule needs of a batch, and keep it for `optim_step`.

    Without `accumulate` what was pending before is dropped. Gradients add, curvature is the mean
    over all samples. What is pending is lost with the next change, and with the server.
    """
    change = change_of(request)
    async with receive_batch(request, session, context) as arrived:
        receipt = await session.forward_backward(
            change(arrived.body, arrived.caller), arrived.read, accumulate=accumulate
        )
    return receipt_answer(session, receipt)


_DOCUMENT: dict[str, Any] = {"requestBody": request_body(OptimStep)} | PRECONDITIONS


@router.post(
    "/optim_step",
    summary="One step with what is pending",
    openapi_extra=_DOCUMENT,
    responses=done(StepResult)
    | problems(
        "unknown_session",
        *BODY,
        *WORK,
        *CHANGE,
        "nothing_pending",
        "invalid_rule",
        "non_finite",
        "out_of_memory",
    ),
)
async def optim_step(request: Request, session: InSession, context: InContext) -> Response:
    """Take a step with the pending gradient and curvature, exactly once."""
    change = change_of(request)
    session.check_capacity()
    async with receive(request, context.limits, context.bodies, tensor_bytes=0) as body:
        wanted = parse(OptimStep, body)
        asked = change(body, Caller(request, context.limits))
        receipt = await session.optim_step(asked, wanted.options, wanted.scales, wanted.pending)
    return receipt_answer(session, receipt)
