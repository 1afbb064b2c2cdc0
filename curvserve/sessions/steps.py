"""The steps of a session: plain functions of a replica, a state and a batch.

A step returns the next state, and raises before there is one. It is one call, or two halves:
`forward_backward` for each of several batches, then `optim_step`. Nothing here knows HTTP, threads
or event loops.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from curvserve_client.errors import InvalidRequest, InvalidRule, NonFinite
from curvserve_client.rules import (
    LossAt,
    Quantities,
    Rule,
    RuleGroup,
    RuleState,
    Update,
    group_state,
    override_rule,
    rule_options,
    update_groups,
)
from curvserve_client.types import ForwardBackwardResult, StepResult

from . import jobs
from .finite import check_finite
from .passes import distance
from .pending import Pending, Reduction
from .replica import Replica
from .state import SessionState, Tensors


def step(
    replica: Replica,
    state: SessionState,
    batch: Tensors,
    rule: Rule,
    see: Callable[[Quantities], None] | None = None,
) -> tuple[SessionState, StepResult]:
    """Return the state after one step of a rule on one batch, and what the step did.

    Args:
        replica: the model on its device.
        state: the version to step from.
        batch: `inputs` and `targets` in host memory, their layout checked.
        rule: how quantities become a step; for this step only.
        see: is given what was computed of the batch, on the device; nobody writes to it.

    Raises:
        InvalidBatch: a value that is not finite or out of range.
        UnknownQuantity: the engine cannot compute a quantity of this model.
        InvalidRule: an option is too large for the parameters' dtype, or does not fit the model.
        NonFinite: loss, metric, quantity, new parameter, rule state or step norm is not finite.
        OutOfMemory: the device cannot hold the batch.
    """
    whole = [RuleGroup(tuple(state.parameters), rule)]
    with jobs.told_as_problems(), torch.no_grad():
        if replica.slices is not None:
            replica.slices.check(whole)
        found = jobs.differentiate(replica, state, batch, rule.quantities(state.rule_state))

        def loss_at(parameters: Tensors) -> float:
            return jobs.loss_at(replica, state, parameters, batch)

        if see is not None:
            see(found.quantities)
        pending = Pending(found.quantities, found.loss, found.told(), len(batch["inputs"]))
        return _applied(replica, state, pending, whole, loss_at, replica.buffers())


def rule_groups(
    state: SessionState,
    options: Mapping[str, float],
    groups: Sequence[Mapping[str, Any]] | None,
) -> list[RuleGroup]:
    """Return how each parameter is stepped.

    Args:
        state: the session, whose rule it is.
        options: options to replace for all parameters.
        groups: `parameters`, and `options` to replace for these; None for one of everything.

    Raises:
        InvalidRule: an option is unknown or out of range.
    """
    rule = override_rule(state.rule, options)
    if groups is None:
        return [RuleGroup(tuple(state.parameters), rule)]
    return [
        RuleGroup(tuple(group["parameters"]), override_rule(rule, group["options"]))
        for group in groups
    ]


def forward_backward(
    replica: Replica,
    state: SessionState,
    batch: Tensors,
    before: Pending | None,
    reduction: Reduction = Reduction.SUM,
) -> tuple[Pending, ForwardBackwardResult]:
    """Return what the session's rule needs of a batch, together with what was pending before.

    Args:
        replica: the model on its device.
        state: the version to differentiate at.
        batch: `inputs` and `targets` in host memory, their layout checked.
        before: what is pending and to be joined with.
        reduction: how the gradients are joined.

    Raises:
        ProblemError: as `step`.
    """
    part = before.parts if before else 0
    with jobs.told_as_problems(), torch.no_grad():
        wanted = state.rule.quantities(state.rule_state)
        found = jobs.differentiate(replica, state, batch, wanted, part=part)
        samples, metrics = len(batch["inputs"]), found.told()
        new = Pending(found.quantities, found.loss, metrics, samples, reduction=reduction)
        pending = new if before is None else before.and_then(new)
        norms = _norms(replica, pending.quantities)
    return pending, ForwardBackwardResult(
        loss=found.loss.item(),
        metrics=metrics,
        version=state.version,
        seed=state.draw_seed(part),
        samples=new.samples,
        pending=part + 1,
        grad_norms=norms,
    )


def optim_step(
    replica: Replica,
    state: SessionState,
    pending: Pending,
    groups: Sequence[RuleGroup],
    scales: Mapping[str, float],
) -> tuple[SessionState, StepResult]:
    """Return the state after one step with what is pending.

    Args:
        replica: the model on its device.
        state: the version to step from, at which the batches were differentiated.
        pending: gradient and curvature.
        groups: how quantities become a step; a parameter of no group stays as it is.
        scales: parameter name -> what its gradient is multiplied by; 1 where it is absent.

    Raises:
        InvalidRequest: a scale or a group is of no parameter, or one is in two groups.
        ProblemError: as `step`.
    """
    trained = pending.quantities["grad"]
    _check_named(trained, scales)
    named = [name for group in groups for name in group.parameters]
    _check_named(state.parameters, named)
    if twice := sorted({name for name in named if named.count(name) > 1}):
        raise InvalidRequest(f"{twice[0]} is in two groups", expected="each parameter in one")

    def loss_at(parameters: Tensors) -> float:
        raise InvalidRule(
            "the rule measures the loss of its batch after the step: it needs the fused step"
        )

    with jobs.told_as_problems(), torch.no_grad():
        if replica.slices is not None:
            replica.slices.check(groups)
        scaled = {name: g * scales[name] if name in scales else g for name, g in trained.items()}
        taken = Pending(
            {**pending.quantities, "grad": scaled}, pending.loss, pending.metrics, pending.samples
        )
        return _applied(replica, state, taken, groups, loss_at, state.buffers)


def _check_named(known: Mapping[str, object], names: Iterable[str]) -> None:
    if unknown := sorted(set(names) - known.keys()):
        message = f"no trained parameter is called {', '.join(unknown)}"
        raise InvalidRequest(message, expected=", ".join(known))


def _applied(
    replica: Replica,
    state: SessionState,
    pending: Pending,
    groups: Sequence[RuleGroup],
    loss_at: LossAt,
    buffers: Tensors,
) -> tuple[SessionState, StepResult]:
    for number, group in enumerate(groups):
        _check_range(group.rule, pending.quantities["grad"])
        own = group_state(state.rule_state, number, group)
        _check_read(group.rule.quantities(own), pending.quantities)

    def updated(parameters: Tensors) -> Update:
        update = update_groups(
            groups,
            parameters,
            pending.quantities,
            state.rule_state,
            loss=pending.loss,
            loss_at=loss_at,
        )
        check_finite(jobs.named("parameter", update.parameters))
        _check_state(state.rule_state, update.state)
        return update

    if replica.slices is None:
        update = updated(state.parameters)
    else:
        update = replica.slices.updated(state.parameters, pending.quantities, groups, updated)
    norm = distance(
        list(state.parameters.values()), [update.parameters[name] for name in state.parameters]
    )
    if not math.isfinite(norm):
        raise NonFinite("step_norm is not finite", tensor="step_norm")
    after = state.stepped(update.parameters, buffers, update.state)
    return after, StepResult(
        loss=float(pending.loss),
        metrics=pending.metrics,
        version=after.version,
        step_norm=norm,
        samples=pending.samples,
        update={name: float(value) for name, value in update.metrics.items()},
    )


def _check_range(rule: Rule, parameters: Tensors) -> None:
    """Refuse an option that is finite in float64 and infinite in the parameters' own dtype."""
    largest = min(torch.finfo(tensor.dtype).max for tensor in parameters.values())
    for option, value in rule_options(rule).items():
        if abs(value) > largest:
            raise InvalidRule(f"{option} is {value!r}", expected=f"{option}: at most {largest:g}")


def _check_read(wanted: Sequence[str], found: Mapping[str, object]) -> None:
    """Refuse an option of `optim_step` that asks for more than `forward_backward` computed."""
    if absent := [name for name in wanted if name not in found]:
        message = f"with these options the rule needs {absent[0]}, which is not pending"
        raise InvalidRule(message, expected=", ".join(found))


def _check_state(before: RuleState, after: RuleState) -> None:
    """Refuse what a rule would remember that is not finite; what it kept was looked at before."""
    for slot, tensors in after.tensors.items():
        kept = before.tensors.get(slot, {})
        new = {name: tensor for name, tensor in tensors.items() if tensor is not kept.get(name)}
        if new:
            check_finite(jobs.named(f"rule.{slot}", new))


def _norms(replica: Replica, quantities: Quantities) -> dict[str, float]:
    """Return the Euclidean norm of each gradient, in float64, having checked everything."""
    if replica.slices is not None:
        return replica.slices.norms(quantities)
    for quantity, tensors in quantities.items():
        check_finite(jobs.named(quantity, tensors))
    gradients = quantities["grad"]
    norms = [torch.linalg.vector_norm(g, dtype=torch.float64) for g in gradients.values()]
    return dict(zip(gradients, torch.stack(norms).tolist(), strict=True))
