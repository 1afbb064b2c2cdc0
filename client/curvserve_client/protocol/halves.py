"""A step in two halves: gradient and curvature that stay on the server, then the step itself."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Literal

from torch import Tensor

from ..messages import JSON, Request
from ..types import ForwardBackwardResult, StepResult
from .common import DOCUMENT, SAFETENSORS, Version, accept, batch, change, path

Reduction = Literal["sum", "mean"]
"""How the gradients of several batches join: as `backward` adds, or as if all were one batch."""


@dataclass(frozen=True)
class Group:
    """Parameters that are stepped alike.

    Attributes:
        parameters: their names.
        options: options of the rule to replace for them.
    """

    parameters: Sequence[str]
    options: Mapping[str, float] = field(default_factory=dict)


def forward_backward(
    session: str,
    inputs: Tensor,
    targets: Tensor,
    *,
    accumulate: bool,
    reduction: Reduction,
    version: Version,
    key: str,
) -> Request[ForwardBackwardResult]:
    """Ask for gradient and curvature of a batch that stay on the server.

    Args:
        session: the session's name.
        inputs: the batch's inputs.
        targets: the batch's targets.
        accumulate: join with what is pending; otherwise that is dropped.
        reduction: how gradients join.
        version: the version to differentiate at; "*" for whatever is there.
        key: the idempotency key.
    """
    return Request(
        "POST",
        path(session, "forward_backward"),
        f"the gradient of a batch in session {session!r}",
        lambda answer: ForwardBackwardResult.from_dict(answer.json()),
        query={"accumulate": json.dumps(accumulate), "reduction": reduction},
        headers=accept(JSON) | change(version, key) | SAFETENSORS,
        parts=batch(inputs, targets),
    )


def optim_step(
    session: str,
    options: Mapping[str, float],
    scales: Mapping[str, float],
    groups: Sequence[Group] | None,
    *,
    pending: int | None,
    batches: Sequence[str] | None = None,
    version: Version,
    key: str,
) -> Request[StepResult]:
    """Ask for a step with what is pending.

    Args:
        session: the session's name.
        options: options of the rule that this step overrides.
        scales: parameter name -> what its gradient is multiplied by.
        groups: groups of parameters with options of their own; None for all alike.
        pending: how many batches have to be pending; None for any number.
        batches: the keys that these batches came with; None for any.
        version: the version that the step starts from.
        key: the idempotency key.
    """
    document = {
        "options": dict(options),
        "scales": dict(scales),
        "groups": None if groups is None else [asdict(group) for group in groups],
        "pending": pending,
        "batches": None if batches is None else list(batches),
    }
    return Request(
        "POST",
        path(session, "optim_step"),
        f"the second half of a step of session {session!r}",
        lambda answer: StepResult.from_dict(answer.json()),
        headers=accept(JSON) | change(version, key) | DOCUMENT,
        parts=[memoryview(json.dumps(document).encode())],
    )
