"""Who computes a session's work, and where: the seam behind which scale-out happens."""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
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
from ..models import Model
from ..phases import Phases
from . import jobs, steps
from .pending import Pending, Reduction
from .replica import EAGER, Replica, initial_tensors
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
    """One thread of this process that owns the device and does one job after another.

    One thread, and always the same: OpenMP keeps a team of workers for every thread that calls it,
    so a pool of threads would fight over the cores.
    """

    def __init__(self, models: Mapping[str, Model], device: torch.device) -> None:
        """Start the thread; the models are built there, when first needed.

        Args:
            models: name -> recipe.
            device: where everything is computed.
        """
        if device.type == "cuda":
            # of the whole process: a step that is computed again after a crash has the same bits
            torch.backends.cudnn.deterministic = True
        self._models = models
        self._device = device
        self._replicas: dict[str, Replica] = {}
        self._jobs: set[Future[Any]] = set()
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="curvserve-compute")

    def describe(self, model: str) -> str:
        """See `Executor`."""
        replica = self._replicas.get(model)
        return EAGER if replica is None else replica.describe()

    async def initial_tensors(self, model: str, seed: int) -> tuple[Tensors, Tensors]:
        """See `Executor`."""
        # not on the device's thread: a session can begin while another's step computes
        return await asyncio.to_thread(initial_tensors, self._models[model], self._device, seed)

    async def evaluate(self, state: SessionState, batch: Tensors) -> EvaluateResult:
        """See `Executor`."""
        return await self._run(self._on_replica, jobs.evaluate, state, batch)

    async def curvature(
        self, state: SessionState, batch: Tensors, quantities: Sequence[str], mc_samples: int
    ) -> CurvatureResult:
        """See `Executor`."""
        return await self._run(
            self._on_replica, jobs.curvature, state, batch, quantities, mc_samples
        )

    async def step(
        self,
        state: SessionState,
        batch: Tensors,
        rule: Rule,
        see: Callable[[Quantities], None] | None = None,
    ) -> tuple[SessionState, StepResult]:
        """See `Executor`."""
        return await self._run(self._on_replica, steps.step, state, batch, rule, see)

    async def forward_backward(
        self,
        state: SessionState,
        batch: Tensors,
        before: Pending | None,
        reduction: Reduction = Reduction.SUM,
    ) -> tuple[Pending, ForwardBackwardResult]:
        """See `Executor`."""
        return await self._run(
            self._on_replica, steps.forward_backward, state, batch, before, reduction
        )

    async def optim_step(
        self,
        state: SessionState,
        pending: Pending,
        groups: Sequence[RuleGroup],
        scales: Mapping[str, float],
    ) -> tuple[SessionState, StepResult]:
        """See `Executor`."""
        return await self._run(self._on_replica, steps.optim_step, state, pending, groups, scales)

    async def load(self, state: SessionState, tensors: Tensors) -> SessionState:
        """See `Executor`."""
        return await self._run(self._on_replica, jobs.load, state, tensors)

    async def to_host(self, tensors: Tensors) -> Tensors:
        """See `Executor`; tensors that are there already are returned at once."""
        if self._device.type == "cpu":
            return tensors
        return await self._run(lambda: {name: tensor.cpu() for name, tensor in tensors.items()})

    async def adopt(self, state: SessionState) -> SessionState:
        """See `Executor`."""
        return await asyncio.to_thread(jobs.adopt, state, self._device)

    def close(self, seconds: float) -> bool:
        """See `Executor`; a thread cannot be ended from outside."""
        self._thread.shutdown(wait=False, cancel_futures=True)
        ended = not wait(self._jobs, seconds).not_done
        if ended:
            # not later, when the interpreter ends: what the engine keeps with the thread is freed
            # by it behind its last line, and needs the interpreter
            self._thread.shutdown(wait=True)
        return ended

    async def _run(self, job: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        request, asked = phases.current.get(Phases()), perf_counter()

        def timed() -> T:
            request.add("queue", perf_counter() - asked)
            with request.measure("compute"):
                return job(*args, **kwargs)

        future = self._thread.submit(timed)
        self._jobs.add(future)
        future.add_done_callback(self._jobs.discard)
        return await asyncio.wrap_future(future)

    def _on_replica(
        self,
        job: Callable[Concatenate[Replica, SessionState, P], T],
        state: SessionState,
        *args: P.args,
        **kwargs: P.kwargs,
    ) -> T:
        replica = self._replicas.get(state.model)
        if replica is None:
            replica = Replica.of(self._models[state.model], self._device)
            self._replicas[state.model] = replica
        return job(replica, state, *args, **kwargs)
