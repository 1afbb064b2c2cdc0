"""The executor `ray`: each session has workers of its own, on any machine of a cluster."""

import asyncio
import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import ray
import torch
from curvserve_client.errors import ProblemError
from curvserve_client.rules import Quantities, Rule, RuleGroup
from curvserve_client.types import (
    CurvatureResult,
    EvaluateResult,
    ForwardBackwardResult,
    StepResult,
)

from .. import phases
from ..models import Model, Support
from ..sessions import InlineExecutor
from ..sessions.executor import Demand, StateLost
from ..sessions.pending import Pending, Reduction
from ..sessions.state import SessionState, Tensors
from ..sessions.storage.digest import hash_parts
from . import transfer
from .divisible import is_divisible
from .group import Group
from .options import ClusterOptions
from .watch import NodeWatch
from .worker import Answer, Place

PARKED = "parked"


class _Held:
    """Something that the workers of a group keep for as long as this is referred to."""

    def __init__(self, group: Group) -> None:
        self.group, self.number = group, group.new_number()
        weakref.finalize(self, group.drop, self.number)


@dataclass(frozen=True)
class _HeldState(SessionState):
    """A state whose tensors workers have."""

    held: _Held | None = None


@dataclass(frozen=True)
class _HeldPending(Pending):
    """A pending gradient that workers have."""

    held: _Held | None = None


class RayExecutor:
    """For each session a group of Ray actors, which hold its states and divide its batches.

    The journal of this process says what was done. Ray repeats nothing; where a worker is lost, its
    group is ended and `StateLost` raised.
    """

    lends = True

    def __init__(
        self,
        models: Mapping[str, Model],
        devices: Mapping[str, torch.device],
        options: ClusterOptions,
        watch: NodeWatch | None = None,
    ) -> None:
        """Begin without workers, in a process that has joined a cluster.

        Args:
            models: name -> recipe.
            devices: name -> what its workers compute on.
            options: the workers.
            watch: who watches the node, until the end.
        """
        self._watch = watch
        self._models, self._devices, self._options = models, devices, options
        here = dict.fromkeys(models, torch.device("cpu"))
        self._here = InlineExecutor(models, here)
        self._groups: weakref.WeakSet[Group] = weakref.WeakSet()
        self._divisible: dict[str, bool] = {}
        self._waiting = 0
        transfer.register()

    def describe(self, state: SessionState) -> str:
        """See `Executor`."""
        return _held(state).group.describe() if self.holds(state) else PARKED

    async def support(self, model: str) -> Support:
        """See `Executor`; found here, on the CPU."""
        return await self._here.support(model)

    async def adopt(self, state: SessionState, session: str) -> SessionState:
        """See `Executor`."""
        model = self._models[state.model]
        if state.model not in self._divisible:
            self._divisible[state.model] = await asyncio.to_thread(is_divisible, model)
        workers = self._options.workers if self._divisible[state.model] else 1
        sharded = self._options.shard_state and workers > 1 and state.rule.elementwise
        remarks = []
        if workers < self._options.workers:
            remarks.append("one worker: the model's samples depend on each other or on chance")
        elif self._options.shard_state and workers > 1 and not sharded:
            remarks.append("state whole: the rule reads all coordinates at once")
        device = self._devices[state.model].type
        self._waiting += 1
        try:
            group = await Group.begun(session, model, device, self._options, workers, sharded)
            group.remarks = remarks
        finally:
            self._waiting -= 1
        self._groups.add(group)
        held = _Held(group)
        try:
            answers = await group.ask("adopt", 0, held.number, await _put(state))
        except ProblemError:
            group.end()
            raise
        return _after(state.outline(), held, answers)

    def holds(self, state: SessionState) -> bool:
        """See `Executor`."""
        held = state.held if isinstance(state, _HeldState) else None
        return held is not None and held.group.alive

    def shards(self, state: SessionState) -> bool:
        """Tell whether each worker of a state keeps slices of what its rule remembers."""
        return _held(state).group.sharded

    def places(self, state: SessionState) -> list[Place]:
        """Return where the workers are that hold a state."""
        return _held(state).group.places()

    def release(self, state: SessionState) -> None:
        """See `Executor`."""
        if self.holds(state):
            _held(state).group.end()

    async def evaluate(self, state: SessionState, batch: Tensors) -> EvaluateResult:
        """See `Executor`."""
        with phases.measure("compute"):
            at = _held(state)
            answers = await at.group.ask("evaluate", at.number, 0, await _put(batch))
        found: EvaluateResult = answers[0].value
        return found

    async def curvature(
        self, state: SessionState, batch: Tensors, quantities: Sequence[str], mc_samples: int
    ) -> CurvatureResult:
        """See `Executor`."""
        with phases.measure("compute"):
            at, samples = _held(state), len(batch["inputs"])
            answer = await at.group.merged(
                at.number, await _put(batch), samples, tuple(quantities), mc_samples
            )
        found: CurvatureResult = answer.value
        return found

    async def step(
        self,
        state: SessionState,
        batch: Tensors,
        rule: Rule,
        see: Callable[[Quantities], None] | None = None,
    ) -> tuple[SessionState, StepResult]:
        """See `Executor`; nothing can be seen of quantities that are elsewhere."""
        after, result = await self._made("step", state, await _put(batch), rule)
        return replace(after, steps=state.steps + 1), result

    async def forward_backward(
        self,
        state: SessionState,
        batch: Tensors,
        before: Pending | None,
        reduction: Reduction = Reduction.SUM,
    ) -> tuple[Pending, ForwardBackwardResult]:
        """See `Executor`."""
        at = _held(state)
        makes = _Held(at.group)
        joined = None if before is None else _held(before).number
        with phases.measure("compute"):
            answers = await at.group.ask(
                "forward_backward", at.number, makes.number, await _put(batch), joined, reduction
            )
        result: ForwardBackwardResult = answers[0].value
        pending = _HeldPending(
            {},
            torch.tensor(result.loss),
            result.metrics,
            result.samples + (before.samples if before else 0),
            before.batches if before else (),
            reduction,
            result.pending,
            makes,
        )
        return pending, result

    async def optim_step(
        self,
        state: SessionState,
        pending: Pending,
        groups: Sequence[RuleGroup],
        scales: Mapping[str, float],
    ) -> tuple[SessionState, StepResult]:
        """See `Executor`."""
        present = _held(pending).number
        after, result = await self._made("optim_step", state, present, groups, scales)
        return replace(after, steps=state.steps + 1), result

    async def load(self, state: SessionState, tensors: Tensors) -> SessionState:
        """See `Executor`."""
        return (await self._made("load", state, await _put(tensors)))[0]

    async def parameters(self, state: SessionState) -> Tensors:
        """See `Executor`."""
        at = _held(state)
        found: Tensors = (await at.group.ask("parameters", at.number, 0, first=True))[0].value
        return found

    async def to_host(self, state: SessionState) -> SessionState:
        """See `Executor`."""
        if not state.is_elsewhere:
            return state
        at = _held(state)
        answers = await at.group.ask("to_host", at.number, 0, first=not at.group.sharded)
        first, *others = (answer.value for answer in answers)
        return _whole(first, others) if at.group.sharded else first

    def demand(self) -> Demand | None:
        """See `Executor`."""
        return Demand(sum(g.workers for g in self._groups if g.alive), self._waiting)

    def close(self, seconds: float) -> bool:
        """See `Executor`; workers end with this process, whatever they do."""
        if self._watch is not None:
            self._watch.end()
        for group in self._groups:
            group.end()
        ray.shutdown()
        return self._here.close(seconds)

    async def _made(self, job: str, state: SessionState, *args: Any) -> tuple[SessionState, Any]:
        """Return the next version of a state, and what its making is answered with."""
        at = _held(state)
        makes = _Held(at.group)
        with phases.measure("compute"):
            answers = await at.group.ask(job, at.number, makes.number, *args)
        return replace(_after(state, makes, answers), version=state.version + 1), answers[0].value


def _held(thing: SessionState | Pending) -> _Held:
    """Return where workers have something.

    Raises:
        StateLost: they have not.
    """
    held = getattr(thing, "held", None)
    if not isinstance(held, _Held) or not held.group.alive:
        raise StateLost("no workers hold it")
    return held


def _after(before: SessionState, held: _Held, answers: Sequence[Answer]) -> _HeldState:
    """Return the state that workers have made.

    Raises:
        StateLost: they have made different ones.
    """
    found = [answer.after for answer in answers if answer.after is not None]
    digest, *others = dict.fromkeys(after.digest for after in found)
    if others:
        held.group.end()
        raise StateLost("the workers of the session came to different states")
    if held.group.sharded:
        told = [digest, *(after.slices for after in found)]
        digest = hash_parts([memoryview(each.encode()) for each in told])
    return _HeldState(
        before.model,
        before.seed,
        before.rule,
        before.parameters,
        before.buffers,
        found[0].rule_state,
        before.version,
        before.steps,
        digest,
        held,
    )


def _whole(first: SessionState, others: Sequence[Mapping[str, Tensors]]) -> SessionState:
    """Return a state of which the workers have each its slices of what the rule remembers."""

    def joined(slot: str, name: str, own: torch.Tensor) -> torch.Tensor:
        pieces = [own, *(slots[slot][name] for slots in others)]
        return torch.cat(pieces).view(first.parameters[name].shape)

    slots = {
        slot: {name: joined(slot, name, own) for name, own in tensors.items()}
        for slot, tensors in first.rule_state.tensors.items()
    }
    return first.remembering(slots)


async def _put(value: SessionState | Tensors) -> Any:
    """Return a value as workers are given it: a reference, where it is large."""
    small = not isinstance(value, SessionState) and (
        sum(tensor.nbytes for tensor in value.values()) <= transfer.WITH_THE_CALL
    )
    return value if small else await asyncio.to_thread(ray.put, value)
