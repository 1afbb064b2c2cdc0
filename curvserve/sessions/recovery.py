"""Sessions as a data folder gives them back: the newest sound snapshot, then each change again.

Each change is computed from its stored batch and the seed of its version, by the code that computed
it first, and the state after it is held against the digest that was stored with it. A digest that
differs means that something here computes other bits than before: it is told, never swallowed, and
the state is served, because its steps are the acknowledged ones.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from curvserve_client.rules import make_rule, override_rule
from curvserve_client.types import ParameterSpec
from curvserve_client.wire import decode
from tqdm import tqdm

from ..models import Model
from .durability import Durability
from .executor import Executor
from .machine import Kind
from .pending import Pending, Reduction
from .snapshots import snapshot_of, state_of
from .state import SessionState, Tensors
from .steps import rule_groups
from .storage import Change, Stored, digest


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
            ProblemError: a change cannot be repeated; out of memory, for one.
        """
        record = stored.record
        if record.model not in self._models:
            raise CannotRecover(f"its model {record.model!r} is not served")
        rule = make_rule(record.rule, record.options)
        state = state_of(stored.snapshot, record.model, record.seed, rule)
        state = await self._adopted(state)
        differences: list[str] = []
        for change in _shown(record.name, stored.changes):
            state = await self._repeated(record.name, state, change)
            if not differences and await self._digest(state) != change.digest:
                differences.append(self._difference(change))
        return state, differences

    async def _adopted(self, state: SessionState) -> SessionState:
        """Put a state on the device, in the module's order, having compared it with the model."""
        parameters, buffers = await self._executor.initial_tensors(state.model, state.seed)
        for kind, stored, built in (
            ("parameter", state.parameters, parameters),
            ("buffer", state.buffers, buffers),
        ):
            _check_same(kind, stored, built)
        return await self._executor.adopt(state.reordered(list(parameters), list(buffers)))

    async def _repeated(self, session: str, state: SessionState, change: Change) -> SessionState:
        batches = [decode(await self._durability.read(session, ref))[0] for ref in change.batches]
        options: Mapping[str, Any] = change.options
        if change.kind == Kind.LOAD:
            return await self._executor.load(state, batches[0])
        if change.kind == Kind.STEP:
            rule = override_rule(state.rule, options["options"])
            return (await self._executor.step(state, batches[0], rule))[0]
        pending = await self._pending(state, batches, change)
        groups = rule_groups(state, options["options"], options.get("groups"))
        return (await self._executor.optim_step(state, pending, groups, options["scales"]))[0]

    async def _pending(
        self, state: SessionState, batches: Sequence[Tensors], change: Change
    ) -> Pending:
        pending: Pending | None = None
        reduction = Reduction(change.options.get("reduction", Reduction.SUM))
        for batch, ref in zip(batches, change.batches, strict=True):
            pending, _ = await self._executor.forward_backward(state, batch, pending, reduction)
            pending = pending.written(ref)
        assert pending is not None  # no step is taken with nothing pending
        return pending

    async def _digest(self, state: SessionState) -> str:
        snapshot = snapshot_of(state)
        groups = {
            name: await self._executor.to_host(tensors)
            for name, tensors in snapshot.tensors.items()
        }
        return digest(groups, snapshot.scalars)

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
