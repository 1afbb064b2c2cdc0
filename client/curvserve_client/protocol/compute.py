"""Calls that compute with a batch."""

from collections.abc import Mapping, Sequence

from torch import Tensor

from .. import wire
from ..errors import ProtocolError
from ..messages import JSON, Answer, Request
from ..types import CurvatureResult, EvaluateResult, StepResult
from .common import SAFETENSORS, Version, accept, batch, change, path, query, version_tag


def evaluate(session: str, inputs: Tensor, targets: Tensor) -> Request[EvaluateResult]:
    """Ask for loss and metrics of a batch."""
    return Request(
        "POST",
        path(session, "evaluate"),
        f"the loss of a batch in session {session!r}",
        lambda answer: EvaluateResult.from_dict(answer.json()),
        headers=accept(JSON) | SAFETENSORS,
        parts=batch(inputs, targets),
    )


def curvature(
    session: str,
    inputs: Tensor,
    targets: Tensor,
    quantities: Sequence[str],
    mc_samples: int,
    bfloat16: Sequence[str],
    version: int | None,
) -> Request[CurvatureResult]:
    """Ask for quantities of a batch.

    Args:
        session: the session's name.
        inputs: the batch's inputs.
        targets: the batch's targets.
        quantities: what to compute.
        mc_samples: draws per sample.
        bfloat16: those of the quantities that are to be rounded to bfloat16.
        version: answer for this version of the parameters or not at all; None for any.
    """

    def parse(answer: Answer) -> CurvatureResult:
        result = CurvatureResult.from_wire(*answer.tensors())
        if missing := set(quantities) - set(result.tensors):
            raise ProtocolError(f"the answer lacks {', '.join(sorted(missing))}")
        return result

    asked = {"quantities": ",".join(quantities), "mc_samples": str(mc_samples)}
    if bfloat16:
        asked["bfloat16"] = ",".join(bfloat16)
    condition = {} if version is None else {"If-Match": version_tag(version)}
    return Request(
        "POST",
        path(session, "curvature"),
        f"{', '.join(quantities)} of a batch in session {session!r}",
        parse,
        query=asked,
        headers=accept(wire.MEDIA_TYPE) | condition | SAFETENSORS,
        parts=batch(inputs, targets),
    )


def step(
    session: str,
    inputs: Tensor,
    targets: Tensor,
    options: Mapping[str, float],
    version: Version,
    key: str,
) -> Request[StepResult]:
    """Ask for one step of the session's rule on a batch.

    Args:
        session: the session's name.
        inputs: the batch's inputs.
        targets: the batch's targets.
        options: options of the rule that this step overrides.
        version: the version that the step starts from; "*" for whatever is there.
        key: the idempotency key.
    """
    return Request(
        "POST",
        path(session, "step"),
        f"a step of session {session!r}",
        lambda answer: StepResult.from_dict(answer.json()),
        query=query(options),
        headers=accept(JSON) | change(version, key) | SAFETENSORS,
        parts=batch(inputs, targets),
    )
