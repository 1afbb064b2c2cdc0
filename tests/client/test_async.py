"""The awaiting face: the same calls, the same bits."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import pytest
import torch
from curvserve_client import (
    AsyncClient,
    AsyncRemoteSession,
    RemoteDiagGGNOptimizer,
    RemoteSession,
    StaleVersion,
    Unreachable,
    connect_async,
)
from torch import nn
from torch.optim.lr_scheduler import ExponentialLR

from tests.client.comparing import Batches, same

from .servers import closed_port


@asynccontextmanager
async def joined(url: str, name: str) -> AsyncIterator[AsyncRemoteSession]:
    async with await connect_async(url, session=name) as session:
        yield session


def awaited(
    url: str, session: RemoteSession, work: Callable[[AsyncRemoteSession], Awaitable[None]]
) -> None:
    """Run work on an asynchronous face of a session."""

    async def main() -> None:
        async with joined(url, session.name) as remote:
            await work(remote)

    asyncio.run(main())


def test_a_client_makes_lists_and_ends_sessions(server_url: str) -> None:
    async def main() -> None:
        async with AsyncClient(server_url) as client:
            assert [model.name for model in await client.models()] == ["mnist_cnn"]
            assert (await client.model("mnist_cnn")).name == "mnist_cnn"
            made = await client.create_session("mnist_cnn", seed=3)
            assert made.name in [info.name for info in await client.sessions()]
            assert (await client.session(made.name)).version == 0
            assert repr(made).startswith(f"AsyncRemoteSession({made.name!r}")
            await client.delete_session(made.name)
            assert made.name not in [info.name for info in await client.sessions()]

    asyncio.run(main())


def test_nobody_listens() -> None:
    with pytest.raises(Unreachable):
        asyncio.run(connect_async(f"http://127.0.0.1:{closed_port()}", model="mnist_cnn"))


def test_every_call_answers_as_the_blocking_one(
    server_url: str, session: RemoteSession, twin: RemoteSession, batches: Batches
) -> None:
    async def work(remote: AsyncRemoteSession) -> None:
        batch = batches[0]
        assert await remote.evaluate(*batch) == twin.evaluate(*batch)
        found, expected = await remote.curvature(*batch), twin.curvature(*batch)
        for name, tensor in expected.tensors["diag_ggn_mc"].items():
            assert torch.equal(found.tensors["diag_ggn_mc"][name], tensor)
        assert await remote.step(*batch, lr=0.1) == twin.step(*batch, lr=0.1)
        half = await remote.forward_backward(*batch)
        assert half == twin.forward_backward(*batch)
        assert await remote.optim_step(lr=0.1) == twin.optim_step(lr=0.1)
        weights = await remote.pull()
        assert await remote.push(weights) == twin.push(twin.pull()) == 3
        assert (await remote.info()).version == remote.version == 3
        assert [s["version"] for s in await remote.history()] == [1, 2]
        kept = await remote.checkpoint("here")
        assert await remote.checkpoints() == [kept]
        tensors, said = await remote.read_checkpoint("here")
        assert torch.equal(tensors["parameters.0.bias"], weights["0.bias"])
        assert said["version"] == "3"
        assert (await remote.joined_step(*batch, clients=1)).version == 4
        assert await remote.settle() is None

    awaited(server_url, session, work)


def test_an_ordinary_loop_and_a_fused_one(
    server_url: str, session: RemoteSession, twin: RemoteSession, batches: Batches
) -> None:
    fired: list[int] = []

    async def work(remote: AsyncRemoteSession) -> None:
        optimizer = RemoteDiagGGNOptimizer(remote.parameters(), lr=0.1)
        optimizer.register_step_post_hook(lambda *_: fired.append(remote.version))
        scheduler = ExponentialLR(optimizer, gamma=0.5)
        for inputs, targets in batches[:2]:
            optimizer.zero_grad()
            (await remote.loss(inputs, targets)).backward()
            await optimizer.step_async()
            scheduler.step()
        for inputs, targets in batches[2:]:
            assert (await optimizer.step_on_async(inputs, targets)).version == remote.version
            scheduler.step()
        with pytest.raises(RuntimeError, match="await optimizer"):
            optimizer.step_on(*batches[0])

    awaited(server_url, session, work)
    assert fired == [1, 2, 3, 4]
    for count, batch in enumerate(batches):
        twin.step(*batch, lr=0.1 * 0.5**count, damping=1.0)
    assert same(session, twin)


def test_a_blocking_session_is_not_awaited(session: RemoteSession, batches: Batches) -> None:
    optimizer = RemoteDiagGGNOptimizer(session.parameters())
    with pytest.raises(RuntimeError, match="the session is not asynchronous"):
        asyncio.run(optimizer.step_on_async(*batches[0]))


def test_a_mirror_trains_to_the_same_bits(
    server_url: str,
    session: RemoteSession,
    twin: RemoteSession,
    net: nn.Sequential,
    batches: Batches,
) -> None:
    async def work(remote: AsyncRemoteSession) -> None:
        mirror = await remote.mirror(net)
        await mirror.pull()
        optimizer = RemoteDiagGGNOptimizer(net.parameters(), lr=0.1)
        for batch in batches:
            optimizer.zero_grad()
            (await mirror.loss(*batch)).backward()
            optimizer.step()
        assert await mirror.push() == 4

    awaited(server_url, session, work)
    for batch in batches:
        twin.step(*batch, lr=0.1, damping=1.0)
    assert same(session, twin)


def test_tasks_of_one_session_take_turns(
    server_url: str, session: RemoteSession, batches: Batches
) -> None:
    async def work(remote: AsyncRemoteSession) -> None:
        results = await asyncio.gather(*(remote.step(*batch) for batch in batches * 2))
        assert sorted(result.version for result in results) == list(range(1, 9))

    awaited(server_url, session, work)


def test_a_cancelled_step_is_settled_by_the_next(
    server_url: str, session: RemoteSession, twin: RemoteSession, batches: Batches
) -> None:
    async def work(remote: AsyncRemoteSession) -> None:
        started = asyncio.Event()
        task = asyncio.create_task(remote.step(*batches[0]))
        asyncio.get_running_loop().call_soon(started.set)
        await started.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert (await remote.step(*batches[1])).version == 2

    awaited(server_url, session, work)
    twin.step(*batches[0])
    twin.step(*batches[1])
    assert same(session, twin)


def test_another_clients_step_is_noticed(
    server_url: str, session: RemoteSession, batches: Batches
) -> None:
    async def work(remote: AsyncRemoteSession) -> None:
        session.step(*batches[0])
        with pytest.raises(StaleVersion):
            await remote.step(*batches[1])
        await remote.info()
        assert (await remote.step(*batches[1])).version == 2

    awaited(server_url, session, work)
