"""Each device has its own thread: models on different ones do not wait for each other."""

import asyncio
import threading

import torch
from curvserve_client.rules import SGD
from torch import Tensor, nn

from curvserve.models import Model
from curvserve.sessions import InlineExecutor, SessionState
from curvserve.sessions.replica import initial_tensors
from tests.sessions.small import batch, classifier

FIRST, SECOND = torch.device("cpu"), torch.device("cpu", 0)  # the same, by two names


class Meeting(nn.Module):
    """Lets a computation go on once another one is under way."""

    def __init__(self, barrier: threading.Barrier) -> None:
        super().__init__()
        self._barrier = barrier

    def forward(self, x: Tensor) -> Tensor:
        self._barrier.wait(60)
        return x


async def evaluated(executor: InlineExecutor, recipe: Model) -> tuple[float, str]:
    rule = SGD()
    parameters, buffers = initial_tensors(recipe, 0)
    fresh = SessionState(recipe.name, 0, rule, parameters, buffers, rule.start(parameters))
    state = await executor.adopt(fresh, "a session")
    return (await executor.evaluate(state, batch())).loss, state.model


def run(models: dict[str, Model], devices: dict[str, torch.device]) -> list[tuple[float, str]]:
    async def both() -> list[tuple[float, str]]:
        executor = InlineExecutor(models, devices)
        try:
            return await asyncio.gather(*(evaluated(executor, model) for model in models.values()))
        finally:
            assert executor.close(60)

    return asyncio.run(both())


def test_two_devices_compute_at_the_same_time() -> None:
    barrier = threading.Barrier(2)
    models = {name: classifier(name, lambda: Meeting(barrier)) for name in ("one", "two")}
    (first, _), (second, _) = run(models, {"one": FIRST, "two": SECOND})
    assert first == second


class Alone(nn.Module):
    """Notes the thread that computes."""

    threads: set[int] = set()

    def forward(self, x: Tensor) -> Tensor:
        self.threads.add(threading.get_ident())
        return x


def test_models_on_one_device_share_its_thread() -> None:
    models = {name: classifier(name, Alone) for name in ("one", "two")}
    run(models, dict.fromkeys(models, FIRST))
    assert len(Alone.threads) == 1
