"""Who computes a session's work, and where: the seam behind which scale-out happens."""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, wait
from contextlib import ExitStack
from time import perf_counter
from typing import Any, Concatenate, NamedTuple, ParamSpec, Protocol, TypeVar

import torch
from curvserve_client.rules import Quantities, Rule, RuleGroup
from curvserve_client.types import (
    CurvatureResult,
    EvaluateResult,
    ForwardBackwardResult,
    StepResult,
)

from .. import phases
from ..engine import reproducible
from ..models import Model, Support
from ..phases import Phases
from . import jobs, steps
from .compute_thread import ComputeThread
from .pending import Pending, Reduction
from .replica import EAGER, Replica
from .state import SessionState, Tensors

P = ParamSpec("P")
T = TypeVar("T")


class StateLost(Exception):
    """A state is not where it was computed any more, and what was under way has changed nothing.

    The state can be adopted again, and the same be asked of it. The text says what happened.
    """


class Demand(NamedTuple):
    """What an executor that lends occupies, for who adds and removes machines.

    Attributes:
        workers: how many work for sessions.
        waiting: sessions that wait for free devices.
    """

    workers: int
    waiting: int


class Executor(Protocol):
    """Takes a session's state and a batch, returns the next state or quantities, and metrics.

    An executor knows nothing of sessions, HTTP or what is durable: all that it needs is in its
    arguments, plain values that can cross to another process. A state has to be adopted first; the
    tensors of one that an executor returns may be `meta` tensors, whose values are elsewhere. What
    its methods raise is told in `curvserve.sessions.jobs` and `curvserve.sessions.steps`; each that
    takes a state raises `StateLost` where that is not there any more.

    Attributes:
        lends: whether a state occupies devices of its own, until it is released. Then states are
            adopted when they are first needed, and released when they have not been for long.
    """

    lends: bool

    def describe(self, state: SessionState) -> str:
        """Tell how batches of a state are computed."""
        ...

    async def support(self, model: str) -> Support:
        """Return which quantities of a model can be computed."""
        ...

    async def adopt(self, state: SessionState, session: str) -> SessionState:
        """Return a state of tensors in host memory as one that can be computed with.

        Args:
            state: the state.
            session: the name of its session.

        Raises:
            NoDevice: no device was free in time.
        """
        ...

    def holds(self, state: SessionState) -> bool:
        """Tell whether a state is adopted, and nothing is known of its loss."""
        ...

    def release(self, state: SessionState) -> None:
        """Let go of a state, and of all that were made of it."""
        ...

    async def evaluate(self, state: SessionState, batch: Tensors) -> EvaluateResult:
        """Return loss and metrics of a batch."""
        ...

    async def curvature(
        self, state: SessionState, batch: Tensors, quantities: Sequence[str], mc_samples: int
    ) -> CurvatureResult:
        """Return quantities of a batch, in host memory."""
        ...

    async def step(
        self,
        state: SessionState,
        batch: Tensors,
        rule: Rule,
        see: Callable[[Quantities], None] | None = None,
    ) -> tuple[SessionState, StepResult]:
        """Return the state after one step, and what the step did.

        Somebody who wants to see the quantities of the batch gives `see`. Where they are not in
        this process it need not be called.
        """
        ...

    async def forward_backward(
        self,
        state: SessionState,
        batch: Tensors,
        before: Pending | None,
        reduction: Reduction = Reduction.SUM,
    ) -> tuple[Pending, ForwardBackwardResult]:
        """Return what the session's rule needs of a batch, together with what was pending."""
        ...

    async def optim_step(
        self,
        state: SessionState,
        pending: Pending,
        groups: Sequence[RuleGroup],
        scales: Mapping[str, float],
    ) -> tuple[SessionState, StepResult]:
        """Return the state after one step with what is pending, and what the step did."""
        ...

    async def load(self, state: SessionState, tensors: Tensors) -> SessionState:
        """Return the state with its parameters replaced."""
        ...

    async def parameters(self, state: SessionState) -> Tensors:
        """Return a state's parameters in host memory."""
        ...

    async def to_host(self, state: SessionState) -> SessionState:
        """Return a state with all of its tensors in host memory."""
        ...

    def demand(self) -> Demand | None:
        """Tell what is occupied and waited for; None where nothing is lent."""
        ...

    def close(self, seconds: float) -> bool:
        """Take nothing more, and tell whether what was under way ended within so many seconds."""
        ...


class InlineExecutor:
    """For each device one thread of this process, which owns it and does one job after another."""

    lends = False

    def __init__(self, models: Mapping[str, Model], devices: Mapping[str, torch.device]) -> None:
        """Start the threads; the models are built there, when first needed.

        Args:
            models: name -> recipe.
            devices: name -> where it is computed.
        """
        self._settings = ExitStack()
        if any(device.type == "cuda" for device in devices.values()):
            # a step that is computed again after a crash has the same bits
            self._settings.enter_context(reproducible())
        self._models = models
        self._devices = devices
        self._replicas: dict[str, Replica] = {}
        self._jobs: set[Future[Any]] = set()
        self._threads = {
            device: ComputeThread(device) for device in dict.fromkeys(devices.values())
        }

    def describe(self, state: SessionState) -> str:
        """See `Executor`."""
        replica = self._replicas.get(state.model)
        return EAGER if replica is None else replica.describe()

    async def support(self, model: str) -> Support:
        """See `Executor`."""
        return await self._run(self._devices[model], lambda: jobs.support(self._replica(model)))

    async def adopt(self, state: SessionState, session: str) -> SessionState:
        """See `Executor`."""
        # not on the device's thread: a session can begin while another's step computes
        return await asyncio.to_thread(jobs.adopt, state, self._devices[state.model])

    def holds(self, state: SessionState) -> bool:
        """See `Executor`; a state is never lost alone."""
        return True

    def release(self, state: SessionState) -> None:
        """See `Executor`; who has the state has its memory."""

    async def evaluate(self, state: SessionState, batch: Tensors) -> EvaluateResult:
        """See `Executor`."""
        return await self._on_replica(jobs.evaluate, state, batch)

    async def curvature(
        self, state: SessionState, batch: Tensors, quantities: Sequence[str], mc_samples: int
    ) -> CurvatureResult:
        """See `Executor`."""
        return await self._on_replica(jobs.curvature, state, batch, quantities, mc_samples)

    async def step(
        self,
        state: SessionState,
        batch: Tensors,
        rule: Rule,
        see: Callable[[Quantities], None] | None = None,
    ) -> tuple[SessionState, StepResult]:
        """See `Executor`."""
        return await self._on_replica(steps.step, state, batch, rule, see)

    async def forward_backward(
        self,
        state: SessionState,
        batch: Tensors,
        before: Pending | None,
        reduction: Reduction = Reduction.SUM,
    ) -> tuple[Pending, ForwardBackwardResult]:
        """See `Executor`."""
        return await self._on_replica(steps.forward_backward, state, batch, before, reduction)

    async def optim_step(
        self,
        state: SessionState,
        pending: Pending,
        groups: Sequence[RuleGroup],
        scales: Mapping[str, float],
    ) -> tuple[SessionState, StepResult]:
        """See `Executor`."""
        return await self._on_replica(steps.optim_step, state, pending, groups, scales)

    async def load(self, state: SessionState, tensors: Tensors) -> SessionState:
        """See `Executor`."""
        return await self._on_replica(jobs.load, state, tensors)

    async def parameters(self, state: SessionState) -> Tensors:
        """See `Executor`; tensors that are there already are returned at once."""
        if self._devices[state.model].type == "cpu":
            return state.parameters
        return await self._run(self._devices[state.model], lambda: jobs.host(state.parameters))

    async def to_host(self, state: SessionState) -> SessionState:
        """See `Executor`; a state that is there already is returned at once."""
        if self._devices[state.model].type == "cpu":
            return state
        return await self._run(self._devices[state.model], lambda: state.of(jobs.host))

    def demand(self) -> Demand | None:
        """See `Executor`; nothing is lent."""
        return None

    def close(self, seconds: float) -> bool:
        """See `Executor`; a thread cannot be ended from outside."""
        for thread in self._threads.values():
            thread.shutdown(wait=False, cancel_futures=True)
        ended = not wait(self._jobs, seconds).not_done
        if ended:
            for thread in self._threads.values():
                thread.join()
            self._settings.close()
        return ended

    async def _on_replica(
        self,
        job: Callable[Concatenate[Replica, SessionState, P], T],
        state: SessionState,
        *args: P.args,
        **kwargs: P.kwargs,
    ) -> T:
        device = self._devices[state.model]
        return await self._run(
            device, lambda: job(self._replica(state.model), state, *args, **kwargs)
        )

    async def _run(self, device: torch.device, job: Callable[[], T]) -> T:
        request, asked = phases.current.get(Phases()), perf_counter()

        def timed() -> T:
            request.add("queue", perf_counter() - asked)
            with request.measure("compute"):
                return job()

        future = self._threads[device].submit(timed)
        self._jobs.add(future)
        future.add_done_callback(self._jobs.discard)
        return await asyncio.wrap_future(future)

    def _replica(self, model: str) -> Replica:
        """Return a model's replica; called by its device's thread alone."""
        replica = self._replicas.get(model)
        if replica is None:
            device, alone = self._devices[model], len(self._threads) == 1
            replica = Replica.of(self._models[model], device, alone=alone)
            self._replicas[model] = replica
        return replica
