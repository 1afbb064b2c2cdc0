"""Sessions as a data folder gives them back: the newest sound snapshot, then each change again.

Each change is computed from its stored batch and the seed of its version, by the code that computed
it first, and the state after it is held against the digest that was stored with it. A digest that
differs means that something here computes other bits than before: it is told, never swallowed, and
the state is served, because its steps are the acknowledged ones.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from curvserve_client.errors import SessionLost, UnknownSession
from curvserve_client.rules import make_rule, override_rule
from curvserve_client.types import ParameterSpec
from curvserve_client.wire import decode
from tqdm import tqdm

from ..models import Model
from .durability import Durability
from .executor import Executor
from .machine import Kind
from .pending import Pending, Reduction
from .replica import initial_tensors
from .snapshots import snapshot_of, state_of
from .state import SessionState, Tensors
from .steps import rule_groups
from .storage import BatchRef, Change, Stored, digest

log = logging.getLogger("curvserve.sessions")

Restore = Callable[
    [str, Pending | None], Awaitable[tuple[SessionState, Pending | None, Sequence[str]]]
]
"""From a session's name and what was pending, which is computed again, to its state, what is
pending, and what differed on the way, in sentences."""


class CannotRecover(Exception):
    """A stored session cannot be served by this process; the text says why."""


class Recovery:
    """Brings stored sessions to their last state.

    Attributes:
        epochs: epoch -> what computed in it.
    """

    def __init__(
        self,
        models: Mapping[str, Model],
        executor: Executor,
        durability: Durability,
        epochs: Mapping[int, Mapping[str, str]],
    ) -> None:
        """Prepare.

        Args:
            models: name -> recipe of every model that is served.
            executor: who computes.
            durability: where the batches are.
            epochs: epoch -> what computed in it; the newest is this process.
        """
        self.epochs = epochs
        self._models = models
        self._executor = executor
        self._durability = durability

    async def state(self, stored: Stored) -> tuple[SessionState, list[str]]:
        """Return a session's last state, and what differed on the way there.

        Raises:
            CannotRecover: its model is not served, or is another than it was.
            StateLost: what computed was lost on the way.
            ProblemError: a change cannot be repeated; out of memory, for one.
        """
        name = stored.record.name
        state = await self._executor.adopt(await self.snapshot(stored), name)
        differences: list[str] = []
        for change in _shown(name, stored.changes):
            state = await self._repeated(name, state, change)
            if not differences and await self._digest(state) != change.digest:
                differences.append(self._difference(change))
        return state, differences

    async def outline(self, stored: Stored) -> SessionState:
        """Return a session's last state but for its values, which are computed when needed.

        Raises:
            CannotRecover: as `state`.
        """
        found = (await self.snapshot(stored)).outline()
        stepped = sum(change.kind != Kind.LOAD for change in stored.changes)
        return replace(found, version=stored.version, steps=found.steps + stepped)

    async def restored(
        self, session: str, pending: Pending | None
    ) -> tuple[SessionState, Pending | None, Sequence[str]]:
        """See `Restore`.

        Raises:
            SessionLost: nothing is kept that the state could be made of.
            StateLost: what computed was lost on the way.
        """
        try:
            state, differences = await self.state(await self._durability.stored(session))
        except (UnknownSession, CannotRecover) as error:
            raise SessionLost(f"its state cannot be made again: {error}") from error
        if pending is not None:
            refs, reduction = pending.batches, pending.reduction
            pending = await self.pending(session, state, refs, reduction)
        for problem in differences:
            log.error("session %s: %s", session, problem)
        return state, pending, differences

    async def snapshot(self, stored: Stored) -> SessionState:
        """Return a session's newest snapshot as a state in host memory, in the module's order.

        Raises:
            CannotRecover: its model is not served, or is another than it was.
        """
        record = stored.record
        if record.model not in self._models:
            raise CannotRecover(f"its model {record.model!r} is not served")
        rule = make_rule(record.rule, record.options)
        return await self.fitted(state_of(stored.snapshot, record.model, record.seed, rule))

    async def fitted(self, state: SessionState) -> SessionState:
        """Return a state with its tensors in the order of its model, which sums depend on.

        Raises:
            CannotRecover: the model has other parameters or buffers.
        """
        model = self._models[state.model]
        parameters, buffers = await asyncio.to_thread(initial_tensors, model, state.seed)
        for kind, found, built in (
            ("parameter", state.parameters, parameters),
            ("buffer", state.buffers, buffers),
        ):
            _check_same(kind, found, built)
        return state.reordered(list(parameters), list(buffers))

    async def pending(
        self, session: str, state: SessionState, refs: Sequence[BatchRef], reduction: Reduction
    ) -> Pending:
        """Return what some batches give at a state, computed again.

        Args:
            session: the session's name.
            state: the version that they were sent for.
            refs: where they are; at least one.
            reduction: how the gradients are joined.

        Raises:
            StateLost: what computed was lost on the way.
        """
        pending: Pending | None = None
        for ref in refs:
            batch = decode(await self._durability.read(session, ref))[0]
            pending, _ = await self._executor.forward_backward(state, batch, pending, reduction)
            pending = pending.written(ref)
        assert pending is not None
        return pending

    async def _repeated(self, session: str, state: SessionState, change: Change) -> SessionState:
        options: Mapping[str, Any] = change.options
        if change.kind == Kind.OPTIM_STEP:
            reduction = Reduction(options.get("reduction", Reduction.SUM))
            pending = await self.pending(session, state, change.batches, reduction)
            groups = rule_groups(state, options["options"], options.get("groups"))
            scales = options["scales"]
            return (await self._executor.optim_step(state, pending, groups, scales))[0]
        batch = decode(await self._durability.read(session, change.batches[0]))[0]
        if change.kind == Kind.LOAD:
            return await self._executor.load(state, batch)
        rule = override_rule(state.rule, options["options"])
        return (await self._executor.step(state, batch, rule))[0]

    async def _digest(self, state: SessionState) -> str:
        if state.digest:
            return state.digest
        snapshot = snapshot_of(await self._executor.to_host(state))
        return digest(snapshot.tensors, snapshot.scalars)

    def _difference(self, change: Change) -> str:
        before, now = self.epochs.get(change.epoch, {}), self.epochs[max(self.epochs)]
        changed = [
            f"{name} was {before.get(name, 'unknown')}, is {now[name]}"
            for name in now
            if before.get(name) != now[name]
        ]
        why = "; ".join(changed) or "nothing that is recorded of this host has changed"
        return (
            f"version {change.version} was repeated with other bits than it had when it was "
            f"acknowledged ({why}); the session goes on from the repeated steps"
        )


def _shown(session: str, changes: Sequence[Change]) -> Iterable[Change]:
    """Return changes that show how far they have come, where a person watches."""
    described = f"repeating the steps of {session}"
    shown: Iterable[Change] = tqdm(changes, described, unit=" steps", disable=None, leave=False)
    return shown


def _check_same(kind: str, stored: Tensors, built: Tensors) -> None:
    before = {name: ParameterSpec.of(tensor) for name, tensor in stored.items()}
    for name, tensor in built.items():
        spec = before.pop(name, None)
        if spec != ParameterSpec.of(tensor):
            raise CannotRecover(f"the {kind} {name} of its model is not what it was: was {spec}")
    if before:
        raise CannotRecover(f"its model has no {kind} {next(iter(before))} any more")
