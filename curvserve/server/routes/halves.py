"""A step in two halves: gradient and curvature of one or more batches, then the step itself."""

from typing import Any

from curvserve_client.types import ForwardBackwardResult, StepResult
from fastapi import APIRouter, Request
from pydantic import BaseModel, ConfigDict, Field
from starlette.responses import Response

from ...sessions import Reduction
from ..batches import BATCH, receive_batch
from ..body import receive
from ..caller import Caller
from ..changes import change_of, receipt_answer
from ..context import InContext, InSession
from ..direct import DirectRoute
from ..documents import parse, request_body
from ..openapi import BODY, CHANGE, WORK, done, problems
from ..preconditions import PRECONDITIONS
from ..quotas import check_quota
from .compute import COMPUTE

router = APIRouter(prefix="/v1/sessions/{name}", tags=["compute"], route_class=DirectRoute)


Options = dict[str, bool | int | float]


class ParameterGroup(BaseModel):
    """Parameters that are stepped alike."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)

    parameters: list[str] = Field(min_length=1, description="Their names.")
    options: Options = Field(
        default_factory=dict, description="Options to replace for them; the others are the step's."
    )


class OptimStep(BaseModel):
    """How the pending gradient becomes a step."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)

    options: Options = Field(
        default_factory=dict, description="Options of the session's rule, for this step alone."
    )
    groups: list[ParameterGroup] | None = Field(
        None,
        min_length=1,
        description="Groups, each a step of its own, as those of a torch optimizer; a parameter of "
        "none stays as it is. Without them all parameters are one group.",
    )
    scales: dict[str, float] = Field(
        default_factory=dict,
        description="Parameter -> what its gradient is multiplied by; 1 where it is absent.",
    )
    pending: int | None = Field(
        None, ge=1, description="How many batches must be pending; 409 where it is another number."
    )
    batches: list[str] | None = Field(
        None,
        min_length=1,
        description="The idempotency keys that these batches came with; 409 where others are "
        "pending, another client's for instance.",
    )


@router.post(
    "/forward_backward",
    summary="Gradient and curvature that stay on the server",
    openapi_extra=BATCH | PRECONDITIONS,
    responses=done(ForwardBackwardResult) | problems(*COMPUTE, *CHANGE, "unknown_quantity"),
)
async def forward_backward(
    request: Request,
    session: InSession,
    context: InContext,
    accumulate: bool = False,
    reduction: Reduction = Reduction.SUM,
) -> Response:
    """Compute what the session's rule needs of a batch, and keep it for `optim_step`.

    Without `accumulate` what was pending before is dropped. Gradients add, or with
    `reduction=mean` become the mean over all samples, which curvature always is. What is pending
    is lost with the next change, and with the server.
    """
    change = change_of(request)
    async with receive_batch(request, session, context) as arrived:
        receipt = await session.forward_backward(
            change(arrived.body, arrived.caller),
            arrived.read,
            accumulate=accumulate,
            reduction=reduction,
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
    check_quota(request, session)
    async with receive(request, context.limits, context.bodies, tensor_bytes=0) as body:
        wanted = parse(OptimStep, body)
        asked = change(body, Caller(request, context.limits))
        groups = None if wanted.groups is None else [g.model_dump() for g in wanted.groups]
        receipt = await session.optim_step(
            asked, wanted.options, wanted.scales, wanted.pending, groups, wanted.batches
        )
    return receipt_answer(session, receipt)
