"""Sessions whose workers are lost, hang, are parked, or not to be had: nothing lost or doubled."""

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import ray
import torch
from curvserve_client.errors import NoDevice, SessionLost, UnknownSession
from curvserve_client.rules import Adam
from torch import Tensor

from curvserve.cluster.executor import RayExecutor
from curvserve.cluster.options import ClusterOptions
from curvserve.models import Model
from curvserve.sessions import Durability, InlineExecutor, Session, Sessions
from curvserve.sessions.executor import Executor
from curvserve.sessions.storage import Level, MemoryStore, Store
from tests.cluster.both import CPU, distance, options
from tests.cluster.gate import closed, gated
from tests.cluster.nets import SINGLE, batch, dropped
from tests.sessions.living import Patient, exactly, folder, request

RULE = Adam(lr=1e-3, eps=1e-3)
ANYTHING = exactly(0, 1, 2, 3, 4, 5)


async def given() -> dict[str, Tensor]:
    return batch(dtype=torch.float32)


@asynccontextmanager
async def living(
    executor: Executor, models: Sequence[Model], open_store: Callable[[], Store]
) -> AsyncIterator[Sessions]:
    recipes = {model.name: model for model in models}
    durability = Durability(open_store, executor.to_host)
    sessions = Sessions(recipes, executor, durability)
    try:
        await sessions.recover()
        yield sessions
        await sessions.finish(60.0)
        await sessions.close()
    finally:
        durability.close()


def on_workers(
    test: Callable[[Sessions, RayExecutor], Awaitable[None]],
    open_store: Callable[[], Store] = MemoryStore,
    *,
    choices: ClusterOptions,
    models: Sequence[Model] = (SINGLE,),
) -> None:
    async def run() -> None:
        names = [model.name for model in models]
        executor = RayExecutor(
            dict(zip(names, models, strict=True)), dict.fromkeys(names, CPU), choices
        )
        async with living(executor, models, open_store) as sessions:
            try:
                await test(sessions, executor)
            finally:
                for session in sessions.list():
                    executor.release(session.state)

    asyncio.run(run())


async def alone(steps: int, path: Path) -> dict[str, Tensor]:
    """Return the parameters after so many undisturbed steps in this process."""
    executor = InlineExecutor({"single": SINGLE}, {"single": CPU})
    try:
        async with living(executor, [SINGLE], folder(path)) as sessions:
            session = await sessions.create("single", RULE)
            for _ in range(steps):
                await session.step(request(), given, {})
            return dict((await session.parameters())[1])
    finally:
        executor.close(60.0)


def pids(executor: RayExecutor, session: Session) -> list[int]:
    return [place.pid for place in executor.places(session.state)]


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(60):
        while not condition():
            await asyncio.sleep(0.01)


def test_workers_are_lost_in_the_middle_of_work(cluster: None, tmp_path: Path) -> None:
    model = gated(tmp_path)

    async def test(sessions: Sessions, executor: RayExecutor) -> None:
        session = await sessions.create("gated", RULE)
        await session.step(request("one"), given, {})
        lost = pids(executor, session)[1]
        with closed(tmp_path) as waits:
            stepping = asyncio.create_task(session.step(request("two"), given, {}))
            await until(partial(waits, lost))
            os.kill(lost, signal.SIGKILL)
            await until(lambda: session.is_parked)  # its group was ended
        receipt = await stepping
        assert receipt.version == 2
        assert await session.step(request("two"), given, {}) == receipt  # was done once
        assert lost not in pids(executor, session)
        # what is pending is computed again too, with the draws that it had
        await session.forward_backward(request("half"), given, accumulate=True)
        os.kill(pids(executor, session)[0], signal.SIGKILL)
        await session.optim_step(request("three"), {}, {})
        assert session.state.version == 3 and not session.problems
        there = dict((await session.parameters())[1])
        here = await alone(3, tmp_path / "alone")
        named = dict(zip(here, there.values(), strict=True))  # the gate moves the numbers by one
        assert distance(named, here) < 1e-6

    on_workers(test, folder(tmp_path / "data"), choices=options(2), models=[model])


@pytest.mark.campaign
def test_a_worker_that_hangs_is_given_up(cluster: None, tmp_path: Path) -> None:
    async def test(sessions: Sessions, executor: RayExecutor) -> None:
        session = await sessions.create("single", RULE)
        await session.step(request(), given, {})
        stopped = pids(executor, session)[1]
        os.kill(stopped, signal.SIGSTOP)
        await session.step(request(), given, {})
        assert (
            distance(dict((await session.parameters())[1]), await alone(2, tmp_path / "a")) < 1e-6
        )
        assert stopped not in pids(executor, session)

    # not less: beside others the first pass of a new worker takes longer than two
    choices = replace(options(2), worker_seconds=6.0)
    on_workers(test, folder(tmp_path / "data"), choices=choices)


@pytest.mark.campaign
def test_sessions_are_parked_and_woken_and_wait_for_devices(cluster: None, tmp_path: Path) -> None:
    async def test(sessions: Sessions, executor: RayExecutor) -> None:
        first, second = [await sessions.create("single", RULE, name=name) for name in "ab"]
        assert first.is_parked and first.describe().execution == "parked"
        await first.step(request(), given, {})
        await first.forward_backward(request("half"), given, accumulate=True)
        assert (await first.evaluate(given, Patient())).version == 1
        with pytest.raises(NoDevice, match="1 worker of .* was not free within 3 s"):
            await second.step(request("tried"), given, {})
        assert executor.demand() == (1, 0)
        await first.park(3600.0)  # has not been idle for so long
        assert not first.is_parked
        await first.park(0.0)
        assert first.is_parked and executor.demand() == (0, 0)
        assert first.describe().pending == 1 and first.describe().version == 1
        assert (await second.step(request("tried"), given, {})).version == 1
        await second.park(0.0)
        await first.optim_step(request(), {}, {}, batches=["half"])
        assert (await first.checkpoint("two", True)).version == 2
        assert distance(dict((await first.parameters())[1]), await alone(2, tmp_path / "a")) < 1e-6
        # who is deleted while it waits for a device does not keep the one that it gets
        waiting = asyncio.create_task(second.step(request(), given, {}))
        await until(lambda: executor.demand() == (1, 1))
        await sessions.delete("b")
        await sessions.delete("a")
        with pytest.raises(UnknownSession):
            await waiting
        await until(lambda: executor.demand() == (0, 0))
        total = ray.cluster_resources()["CPU"]
        await until(lambda: ray.available_resources().get("CPU") == total)

    choices = replace(options(1), cpus=1.5, place_seconds=3.0)  # of the two CPUs that there are
    on_workers(test, folder(tmp_path / "data", Level.PROCESS), choices=choices)


@pytest.mark.campaign
def test_without_a_data_folder_a_parked_session_is_kept_and_a_lost_one_is_not(
    cluster: None,
) -> None:
    async def test(sessions: Sessions, executor: RayExecutor) -> None:
        session = await sessions.create("single", RULE)
        await session.step(request(), given, {})
        await session.park(0.0)
        assert session.is_parked
        assert (await session.step(request(), given, {})).version == 2
        os.kill(pids(executor, session)[0], signal.SIGKILL)
        with pytest.raises(SessionLost, match="nothing is kept at level none"):
            await session.step(request(), given, {})
        with pytest.raises(SessionLost):
            await session.evaluate(given, Patient())

    on_workers(test, choices=options(1))


@pytest.mark.campaign
def test_a_model_that_draws_numbers_has_one_worker(cluster: None) -> None:
    async def test(sessions: Sessions, executor: RayExecutor) -> None:
        session = await sessions.create("dropped", RULE)
        assert (await session.step(request(), given, {})).version == 1
        assert "1 worker" in session.describe().execution
        assert "depend on each other or on chance" in session.describe().execution

    on_workers(test, choices=options(2), models=[dropped()])
