"""Who computes a session's work, and where: the seam behind which scale-out happens."""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, wait
from time import perf_counter
from typing import Any, Concatenate, ParamSpec, Protocol, TypeVar

import torch
from curvserve_client.rules import Quantities, Rule, RuleGroup
from curvserve_client.types import (
    CurvatureResult,
    EvaluateResult,
    ForwardBackwardResult,
    StepResult,
)

from .. import phases
from ..models import Model, Support
from ..phases import Phases
from . import jobs, steps
from .compute_thread import ComputeThread
from .pending import Pending, Reduction
from .replica import CPU, EAGER, Replica, initial_tensors
from .state import SessionState, Tensors

P = ParamSpec("P")
T = TypeVar("T")


class Executor(Protocol):
    """Takes a session's state and a batch, returns the next state or quantities, and metrics.

    An executor holds no session: all that it needs is in its arguments, plain values that could
    cross to another process. It knows nothing of HTTP. What its methods raise is told in
    `curvserve.sessions.jobs` and `curvserve.sessions.steps`.
    """

    def describe(self, model: str) -> str:
        """Tell how batches of a model are computed."""
        ...

    async def support(self, model: str) -> Support:
        """Return which quantities of a model can be computed."""
        ...

    async def initial_tensors(self, model: str, seed: int) -> tuple[Tensors, Tensors]:
        """Return the parameters and the buffers that a session of a model starts from."""
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

    async def to_host(self, tensors: Tensors) -> Tensors:
        """Return a state's tensors in host memory."""
        ...

    async def adopt(self, state: SessionState) -> SessionState:
        """Return a state that was read from a file as one that can be computed with."""
        ...

    def close(self, seconds: float) -> bool:
        """Take nothing more, and tell whether what was under way ended within so many seconds."""
        ...


class InlineExecutor:
    """For each device one thread of this process, which owns it and does one job after another."""

    def __init__(self, models: Mapping[str, Model], devices: Mapping[str, torch.device]) -> None:
        """Start the threads; the models are built there, when first needed.

        Args:
            models: name -> recipe.
            devices: name -> where it is computed.
        """
        if any(device.type == "cuda" for device in devices.values()):
            # of the whole process: a step that is computed again after a crash has the same bits
            torch.backends.cudnn.deterministic = True
        self._models = models
        self._devices = devices
        self._replicas: dict[str, Replica] = {}
        self._jobs: set[Future[Any]] = set()
        self._threads = {
            device: ComputeThread(device) for device in dict.fromkeys(devices.values())
        }

    def describe(self, model: str) -> str:
        """See `Executor`."""
        replica = self._replicas.get(model)
        return EAGER if replica is None else replica.describe()

    async def support(self, model: str) -> Support:
        """See `Executor`."""
        return await self._run(self._devices[model], lambda: jobs.support(self._replica(model)))

    async def initial_tensors(self, model: str, seed: int) -> tuple[Tensors, Tensors]:
        """See `Executor`."""
        # not on the device's thread: a session can begin while another's step computes
        return await asyncio.to_thread(
            initial_tensors, self._models[model], self._devices[model], seed
        )

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

    async def to_host(self, tensors: Tensors) -> Tensors:
        """See `Executor`; tensors that are there already are returned at once."""
        device = next((tensor.device for tensor in tensors.values()), CPU)
        if device.type == "cpu":
            return tensors
        return await self._run(
            device, lambda: {name: tensor.cpu() for name, tensor in tensors.items()}
        )

    async def adopt(self, state: SessionState) -> SessionState:
        """See `Executor`."""
        return await asyncio.to_thread(jobs.adopt, state, self._devices[state.model])

    def close(self, seconds: float) -> bool:
        """See `Executor`; a thread cannot be ended from outside."""
        for thread in self._threads.values():
            thread.shutdown(wait=False, cancel_futures=True)
        ended = not wait(self._jobs, seconds).not_done
        if ended:
            for thread in self._threads.values():
                thread.join()
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
