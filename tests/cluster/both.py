"""The same work on workers and in this process, side by side."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from typing import TypeVar

import torch
from curvserve_client.rules import DiagGGN, Rule
from torch import Tensor

from curvserve.cluster.executor import RayExecutor
from curvserve.cluster.options import ClusterOptions
from curvserve.models import Model
from curvserve.sessions import InlineExecutor, SessionState
from curvserve.sessions.executor import Executor
from curvserve.sessions.replica import initial_tensors

T = TypeVar("T")
CPU = torch.device("cpu")


def options(workers: int, *, shard_state: bool = False) -> ClusterOptions:
    """Return workers that all find room on a machine of two cores."""
    return ClusterOptions(
        workers=workers,
        cpus=0.1,
        shard_state=shard_state,
        place_seconds=60.0,
        worker_seconds=60.0,
    )


def first_state(model: Model, rule: Rule | None = None, seed: int = 0) -> SessionState:
    """Return the state that a session of a model begins with, in host memory."""
    rule = rule or DiagGGN()
    parameters, buffers = initial_tensors(model, seed)
    return SessionState(model.name, seed, rule, parameters, buffers, rule.start(parameters))


class Both:
    """Workers and this process, with the same first state.

    Attributes:
        model: the model.
        workers: the one executor.
        here: the other.
        there: the state as workers have it.
        state: the state as it is here.
    """

    def __init__(self, model: Model, choices: ClusterOptions) -> None:
        models, devices = {model.name: model}, {model.name: CPU}
        self.model = model
        self.loop = asyncio.new_event_loop()
        self.workers = RayExecutor(models, devices, choices)
        self.here = InlineExecutor(models, devices)
        self.there = self.run(self.workers.adopt(first_state(model), "session"))
        self.state = self.run(self.here.adopt(first_state(model), "session"))

    def run(self, work: Awaitable[T]) -> T:
        """Return what work comes to."""
        return self.loop.run_until_complete(_awaited(work))

    def each(self) -> list[tuple[Executor, SessionState]]:
        """Return the executors with their states: workers first."""
        return [(self.workers, self.there), (self.here, self.state)]

    def on_both(self, work: Callable[[Executor, SessionState], Awaitable[T]]) -> tuple[T, T]:
        """Return what work comes to on workers, and here."""
        there, here = (self.run(work(executor, state)) for executor, state in self.each())
        return there, here

    def close(self) -> None:
        """End the workers; the cluster goes on."""
        self.workers.release(self.there)
        assert self.here.close(60.0)
        self.loop.close()


async def _awaited(work: Awaitable[T]) -> T:
    return await work


def distance(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> float:
    """Return the largest difference between tensors of the same names, over their norms."""
    assert list(one) == list(other)
    return max(_apart(one[name], other[name]) for name in one)


def _apart(one: Tensor | list[Tensor], other: Tensor | list[Tensor]) -> float:
    if isinstance(one, Tensor) and isinstance(other, Tensor):
        assert one.dtype is other.dtype and one.shape == other.shape
        scale = torch.linalg.vector_norm(other.double()) or 1.0
        return float(torch.linalg.vector_norm((one - other).double()) / scale)
    return max(_apart(a, b) for a, b in zip(one, other, strict=True))
