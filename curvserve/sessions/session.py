"""One session: its current state, the work on it, and what makes each change durable."""

import asyncio
import logging
import math
import time
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from curvserve_client.errors import (
    CheckpointExists,
    Overloaded,
    ProblemError,
    StorageFailed,
)
from curvserve_client.rules import Quantities, override_rule, rule_options
from curvserve_client.types import CurvatureResult, EvaluateResult, ParameterSpec, SessionInfo

from .. import phases
from ..failpoints import reached
from ..models import Model
from .attendance import Attendance, Caller, Request
from .curvature import SeenStep
from .durability import Durability
from .events import Events
from .executor import Executor
from .machine import Expectation, Kind, Machine, Receipt, Ticket
from .observer import Observer
from .pending import Pending, Reduction
from .recovery import Restore
from .residence import Residence
from .state import SessionState, Tensors
from .steps import rule_groups
from .storage import BatchRef, Change, CheckpointInfo, Level, SessionRecord

log = logging.getLogger("curvserve.sessions")

BatchReader = Callable[[], Awaitable[Tensors]]
"""Reads and checks what a caller sent; called only where the request is to be carried out."""

Option = float | int | bool

T = TypeVar("T")

HISTORY = 4096
"""Steps that `history` can tell of."""

FAILURES = 256
"""Failed changes that `failures` can tell of."""


@dataclass(frozen=True)
class _Outcome:
    """What a change has come to, before it is applied.

    Attributes:
        state: the next state.
        answer: what the caller is told.
        batches: what a replay needs beside the options, in the order of use.
        options: what the request said beside its batches.
        pending: the pending gradient after it.
        seen: what it read of its batch, where somebody wants to look at it.
    """

    state: SessionState
    answer: dict[str, Any]
    batches: Sequence[BatchRef] = ()
    options: Mapping[str, Any] | None = None
    pending: Pending | None = None
    seen: Quantities | None = None


class Session:
    """One live training state of a model.

    Readers see the state that is current when they ask, and need not wait for a step. Changes come
    one after another: compute out of place, check, make durable, swap, acknowledge; what fails
    changes nothing. `machine` decides, this class carries out.

    Attributes:
        record: name, model, seed, rule and time of beginning.
        model: the recipe of its model.
    """

    def __init__(
        self,
        record: SessionRecord,
        model: Model,
        state: SessionState,
        machine: Machine,
        executor: Executor,
        durability: Durability,
        events: Events,
        observer: Observer,
        restore: Restore,
        problems: Sequence[str] = (),
        history: Iterable[dict[str, Any]] = (),
    ) -> None:
        """Begin at a state that `durability` knows already.

        Args:
            record: name, model, seed, rule and time of beginning.
            model: the recipe of its model.
            state: the current version; the executor need not have adopted it.
            machine: its state machine, at the same version.
            executor: who computes.
            durability: who stores.
            events: who tells those who watch.
            observer: who looks at its steps for them.
            restore: who makes its state again of what is stored.
            problems: what was found damaged or different at recovery.
            history: what was answered to earlier steps, the oldest first.
        """
        self.record = record
        self.model = model
        self._residence = Residence(record.name, state, executor, restore)
        self._problems = tuple(problems)
        self._machine = machine
        self._executor = executor
        self._durability = durability
        self._events = events
        self._observer = observer
        self._attendance = Attendance(record.name, machine)
        self._turn = asyncio.Lock()
        self._seconds = 0.0
        self._history: deque[dict[str, Any]] = deque(history, maxlen=HISTORY)
        self._failures: deque[dict[str, Any]] = deque(maxlen=FAILURES)

    @property
    def name(self) -> str:
        """What clients call it."""
        return self.record.name

    @property
    def state(self) -> SessionState:
        """The current version."""
        return self._residence.state

    @property
    def problems(self) -> tuple[str, ...]:
        """What was found damaged or different when the session was recovered, or woken."""
        return self._problems + self._residence.problems

    @property
    def durable_version(self) -> int | None:
        """The newest version that survives what the storage level promises; None at `none`."""
        return self._machine.durable_version

    @property
    def depth(self) -> int:
        """How many requests wait or are being computed."""
        return self._machine.depth

    @property
    def is_parked(self) -> bool:
        """Whether no device holds it: the next request has to wait for one."""
        return self._residence.is_parked

    def describe(self) -> SessionInfo:
        """Return the session as it is told to clients."""
        state = self.state
        return SessionInfo(
            name=self.name,
            model=state.model,
            version=state.version,
            durable_version=self.durable_version,
            durability=self._durability.level,
            seed=state.seed,
            rule=state.rule.name,
            options=rule_options(state.rule),
            steps=state.steps,
            pending=self._machine.pending,
            parameters={name: ParameterSpec.of(p) for name, p in state.parameters.items()},
            created=self.record.created,
            problems=self.problems,
            execution=self._executor.describe(state),
            owner=self.record.owner,
        )

    def history(self, after: int = -1) -> list[dict[str, Any]]:
        """Return what is known of the steps behind a version, the oldest first."""
        return [step for step in self._history if step["version"] > after]

    def failures(self) -> list[dict[str, Any]]:
        """Return the changes that this process began and did not apply, the oldest first."""
        return list(self._failures)

    def seen_curvature(self, after: int = -1) -> list[dict[str, Any]]:
        """Return what was seen of the curvature behind a version, the oldest first.

        While nobody watches nothing is looked at. See `curvature.summary`.
        """
        return self._observer.history(after)

    def check_capacity(self) -> None:
        """Refuse early what would be refused once its body is here.

        Raises:
            ProblemError: see `Machine.check_capacity`; `Overloaded` says when to come again.
        """
        try:
            self._machine.check_capacity()
        except Overloaded as error:
            error.retry_after = max(1.0, math.ceil(self._machine.depth * self._seconds))
            raise

    async def parameters(self) -> tuple[int, Tensors]:
        """Return the current version and its parameters in host memory."""

        async def read(state: SessionState) -> tuple[int, Tensors]:
            return state.version, await self._executor.parameters(state)

        return await self._residence.at(read)

    def knows(self, key: str) -> bool:
        """Tell whether a change with this key was carried out, or is being worked on."""
        return self._machine.knows(key)

    async def evaluate(self, batch: BatchReader, caller: Caller) -> EvaluateResult:
        """Return loss and metrics of a batch at the current version."""

        async def compute(state: SessionState) -> EvaluateResult:
            return await self._executor.evaluate(state, await batch())

        return await self._read(compute, Expectation(), caller)

    async def curvature(
        self,
        batch: BatchReader,
        quantities: Sequence[str],
        mc_samples: int,
        expected: Expectation,
        caller: Caller,
    ) -> CurvatureResult:
        """Return quantities of a batch at the current version, if that is the expected one.

        Raises:
            StaleVersion: the current version is another.
        """

        async def compute(state: SessionState) -> CurvatureResult:
            return await self._executor.curvature(state, await batch(), quantities, mc_samples)

        return await self._read(compute, expected, caller)

    async def step(
        self, request: Request, batch: BatchReader, options: Mapping[str, Option]
    ) -> Receipt:
        """Take one step, exactly once.

        Args:
            request: key, fingerprint, expected versions and caller.
            batch: gives the batch.
            options: options of the session's rule to replace for this step.

        Raises:
            KeyReused: see `Machine.admit`; likewise InFlight, Overloaded, Draining.
            StaleVersion: the current version is none of the expected ones.
            InvalidRule: an option is unknown or out of range.
            StorageFailed: the change could not be made durable, or is not known to be.
            DeadlineExceeded: the caller's time has passed; nothing was changed.
            CallerGone: the caller is not there any more.
            ProblemError: whatever `curvserve.sessions.steps.step` refuses.
        """

        async def compute(state: SessionState) -> _Outcome:
            rule = override_rule(state.rule, options)
            tensors = await batch()
            seen: list[Quantities] = []
            see = seen.append if self._observer.is_due() else None
            computing = self._executor.step(state, tensors, rule, see)
            (after, result), ref = await self._writing(tensors, computing)
            said = {"options": dict(options)}
            return _Outcome(after, result.to_dict(), [ref], said, seen=next(iter(seen), None))

        return await self._change(Kind.STEP, request, compute)

    async def forward_backward(
        self,
        request: Request,
        batch: BatchReader,
        *,
        accumulate: bool,
        reduction: Reduction = Reduction.SUM,
    ) -> Receipt:
        """Compute what a step needs of a batch, and keep it for `optim_step`.

        Args:
            request: as for `step`.
            batch: gives the batch.
            accumulate: join with what is pending already; otherwise that is dropped.
            reduction: how the gradients are joined.

        Raises:
            InvalidRequest: what is pending is joined in another way.
            ProblemError: as `step`.
        """

        async def compute(state: SessionState) -> _Outcome:
            tensors = await batch()
            before = self._residence.pending if accumulate else None
            computing = self._executor.forward_backward(state, tensors, before, reduction)
            (pending, result), ref = await self._writing(tensors, computing)
            return _Outcome(state, result.to_dict(), pending=pending.written(ref))

        return await self._change(Kind.ACCUMULATE, request, compute, afresh=not accumulate)

    async def optim_step(
        self,
        request: Request,
        options: Mapping[str, Option],
        scales: Mapping[str, float],
        pending: int | None = None,
        groups: Sequence[Mapping[str, Any]] | None = None,
        batches: Sequence[str] | None = None,
    ) -> Receipt:
        """Take a step with what is pending, exactly once.

        Args:
            request: as for `step`.
            options: options of the session's rule to replace for this step.
            scales: parameter name -> what its gradient is multiplied by; 1 where it is absent.
            pending: how many batches have to be pending, where the caller knows.
            groups: groups of parameters, `parameters` and `options` of each; a parameter of none
                stays as it is. None for all parameters alike.
            batches: the keys that the pending batches came with, where the caller names them.

        Raises:
            NothingPending: none are, not as many, or others.
            ProblemError: as `step`.
        """

        async def compute(state: SessionState) -> _Outcome:
            stepped = rule_groups(state, options, groups)
            present = self._residence.pending
            assert present is not None  # or the machine would have refused to start
            after, result = await self._executor.optim_step(state, present, stepped, scales)
            said = {
                "options": dict(options),
                "scales": dict(scales),
                "groups": groups,
                "reduction": present.reduction,
            }
            # nothing is here where the quantities are elsewhere
            seen = (present.quantities or None) if self._observer.is_due() else None
            return _Outcome(after, result.to_dict(), present.batches, said, seen=seen)

        named = None if batches is None else tuple(batches)
        return await self._change(Kind.OPTIM_STEP, request, compute, pending=pending, batches=named)

    async def load(self, request: Request, tensors: BatchReader) -> Receipt:
        """Replace the parameters, exactly once; what the rule remembers is kept.

        Args:
            request: as for `step`.
            tensors: gives the new parameters.

        Raises:
            ProblemError: as `step`, and whatever `curvserve.sessions.jobs.load` refuses.
        """

        async def compute(state: SessionState) -> _Outcome:
            given = await tensors()
            after, ref = await self._writing(given, self._executor.load(state, given))
            return _Outcome(after, {"version": after.version}, [ref])

        return await self._change(Kind.LOAD, request, compute)

    async def checkpoint(self, name: str, rule_state: bool) -> CheckpointInfo:
        """Keep the current version under a name, for good.

        Args:
            name: the checkpoint's name.
            rule_state: whether what the rule remembers is kept too.

        Raises:
            InvalidRequest: the name cannot be one.
            CheckpointExists: another checkpoint has the name.
            StorageFailed: it could not be written.
        """

        async def keep(state: SessionState) -> CheckpointInfo:
            try:
                return await self._durability.checkpoint(self.name, name, state, rule_state)
            except CheckpointExists:
                found = {each.name: each for each in await self.checkpoints()}[name]
                if (found.version, found.with_rule_state) != (state.version, rule_state):
                    raise
                return found  # the retry of a call whose answer was lost

        info = await self._residence.at(keep)
        self._publish("checkpoint", name=name, version=info.version)
        return info

    async def checkpoints(self) -> list[CheckpointInfo]:
        """Return the session's checkpoints, the oldest first."""
        return await self._durability.checkpoints(self.name)

    async def read_checkpoint(self, name: str) -> bytearray:
        """Return a checkpoint as a safetensors file.

        Raises:
            UnknownCheckpoint: there is none of this name.
        """
        return await self._durability.read_checkpoint(self.name, name)

    async def delete(self) -> None:
        """End the session at once; a change under way is not applied any more."""
        self._machine.delete()
        self._observer.close()
        self._residence.give_up()
        await self._durability.delete(self.name)
        self._publish("deleted")

    def drain(self) -> None:
        """Admit nothing more."""
        self._machine.drain()

    async def idle(self) -> None:
        """Return once nothing is admitted any more."""
        await self._attendance.idle()

    def withdraw(self) -> None:
        """Drop what has not begun."""
        self._attendance.withdraw()

    async def close(self) -> None:
        """Keep the last version in a snapshot, so that the next start has nothing to replay."""
        if not self.is_parked:
            await self._durability.snapshot(self.name, self.state)

    async def park(self, seconds: float) -> None:
        """Keep the current version in a snapshot and let go of its devices, if they are idle.

        The next request that needs the state brings it back.

        Args:
            seconds: how long nothing must have been asked of the state.

        Raises:
            StorageFailed: the snapshot could not be written; the devices are kept.
        """

        def idle() -> bool:
            return self._machine.depth == 0 and self._residence.is_unused(seconds)

        if not idle():
            return
        async with self._turn:
            stored = self._durability.level is not Level.NONE
            state, pending = self.state, self._residence.pending
            if pending is not None and not stored:
                return  # its batches are kept nowhere else
            refs = () if pending is None else pending.batches
            if stored:
                await self._durability.snapshot(self.name, state, refs)
            else:
                state = await self._executor.to_host(state)
            if idle():  # still
                self._residence.park(state)

    async def _read(
        self,
        compute: Callable[[SessionState], Awaitable[T]],
        expected: Expectation,
        caller: Caller,
    ) -> T:
        ticket = Ticket(Kind.READ, expectation=expected, account=caller.account)
        self.check_capacity()
        self._machine.admit(ticket)

        async def work() -> T:
            try:
                self._machine.start(ticket)
                found = await self._residence.at(compute)
            except BaseException:
                self._machine.fail(ticket)
                raise
            self._machine.read(ticket)
            return found

        return await self._attendance.attend(ticket, work(), caller)

    async def _change(
        self,
        kind: Kind,
        request: Request,
        compute: Callable[[SessionState], Awaitable[_Outcome]],
        **expected: Any,
    ) -> Receipt:
        ticket = Ticket(
            kind,
            request.key,
            request.fingerprint,
            request.expectation,
            account=request.caller.account,
            **expected,
        )
        done = self._machine.admit(ticket)
        if done is not None:
            return done
        return await self._attendance.attend(
            ticket, self._carry_out(ticket, compute), request.caller
        )

    async def _carry_out(
        self, ticket: Ticket, compute: Callable[[SessionState], Awaitable[_Outcome]]
    ) -> Receipt:
        try:
            with phases.measure("queue"):
                await self._turn.acquire()
            try:
                self._machine.start(ticket)
                return await self._apply(ticket, compute)
            finally:
                self._turn.release()
        except BaseException:
            self._machine.fail(ticket)
            raise

    async def _apply(
        self, ticket: Ticket, compute: Callable[[SessionState], Awaitable[_Outcome]]
    ) -> Receipt:
        began = time.perf_counter()
        try:
            reached("before_compute")
            outcome = await self._residence.at(compute)
            reached("after_compute")
            self._machine.computed(ticket)
        except ProblemError as error:
            await self._failed(ticket, error)
            raise
        receipt = Receipt(outcome.state.version, outcome.answer)
        if ticket.kind is not Kind.ACCUMULATE:
            await self._make_durable(ticket, outcome, receipt)
        reached("before_swap")
        before = self.state
        self._residence.state, self._residence.pending = outcome.state, outcome.pending
        self._machine.commit(ticket, receipt)
        reached("after_swap")
        self._note(ticket, receipt, time.perf_counter() - began)
        if outcome.seen is not None:
            self._show(before, outcome, outcome.seen)
        return receipt

    async def _make_durable(self, ticket: Ticket, outcome: _Outcome, receipt: Receipt) -> None:
        change = Change(
            version=receipt.version,
            key=ticket.key,
            fingerprint=ticket.fingerprint,
            kind=ticket.kind,
            options=outcome.options or {},
            batches=tuple(outcome.batches),
            answer=receipt.answer,
            digest="",
        )
        with phases.measure("journal"):
            durable = await self._durability.commit(self.name, change, outcome.state)
        self._machine.made_durable(durable)

    async def _failed(self, ticket: Ticket, error: ProblemError) -> None:
        """Note a change that was begun and changed nothing."""
        failure = {"code": error.code, "version": self.state.version, "time": _now()}
        self._failures.append(failure)
        self._publish("failed", **failure)
        if ticket.kind is Kind.ACCUMULATE:
            return
        problem = {"code": error.code, "detail": error.detail}
        try:
            await self._durability.fail(self.name, ticket, problem)
        except StorageFailed as failure:  # what the caller is to be told is the first error
            log.error("session %s: a failed request is not in the journal: %s", self.name, failure)

    def _note(self, ticket: Ticket, receipt: Receipt, seconds: float) -> None:
        self._seconds = seconds if not self._seconds else 0.9 * self._seconds + 0.1 * seconds
        if ticket.kind in (Kind.STEP, Kind.OPTIM_STEP):
            step = {**receipt.answer, "time": _now()}
            self._history.append(step)
            self._publish("step", **step)
        elif ticket.kind is Kind.LOAD:
            self._publish("loaded", version=receipt.version)

    def _show(self, before: SessionState, outcome: _Outcome, quantities: Quantities) -> None:
        """Let those who watch see a step; the tensors are handed over, not looked at here."""
        after = outcome.state
        self._observer.look(
            SeenStep(
                before.parameters,
                after.parameters,
                quantities,
                after.rule_state,
                outcome.answer,
                _now(),
            )
        )

    def _publish(self, kind: str, **members: Any) -> None:
        self._events.publish(kind, session=self.name, **members)

    async def _writing(
        self, batch: Tensors, computing: Coroutine[Any, Any, T]
    ) -> tuple[T, BatchRef]:
        """Write a batch beside its computation; what is not committed later is never read."""
        if self._durability.level is Level.NONE:
            return await computing, BatchRef(0, 0, 0, 0)
        found, ref = await asyncio.gather(computing, self._durability.append(self.name, batch))
        return found, ref


def _now() -> float:
    return round(time.time(), 3)
