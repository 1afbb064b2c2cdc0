"""A session whose workers are on two nodes goes on when one of them is gone."""

import asyncio
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import ray
from ray.cluster_utils import Cluster

from curvserve.cluster import joining
from curvserve.cluster.executor import RayExecutor
from tests.cluster.both import CPU, distance, options
from tests.cluster.nets import SINGLE
from tests.cluster.test_sessions import RULE, alone, given, living
from tests.sessions.living import folder, request


@pytest.fixture
def nodes() -> Iterator[Cluster]:
    """A head that computes nothing, which this process has joined, and two nodes."""
    cluster = Cluster(head_node_args={"num_cpus": 0, "include_dashboard": False})
    for _ in range(2):
        cluster.add_node(num_cpus=1)
    joining.join(cluster.address)
    yield cluster
    ray.shutdown()
    cluster.shutdown()


@pytest.mark.campaign
def test_a_session_is_spread_over_nodes_and_survives_one(nodes: Cluster, tmp_path: Path) -> None:
    async def run() -> None:
        choices = replace(options(2), cpus=0.5, placement="spread")
        executor = RayExecutor({"single": SINGLE}, {"single": CPU}, choices)
        async with living(executor, [SINGLE], folder(tmp_path / "data")) as sessions:
            session = await sessions.create("single", RULE)
            await session.step(request(), given, {})
            before = [place.node for place in executor.places(session.state)]
            assert len(set(before)) == 2
            own = ray.get_runtime_context().get_node_id()  # on one host it may be any
            gone = next(node for node in before if node != own)
            lost = next(node for node in nodes.list_all_nodes() if node.node_id == gone)
            nodes.remove_node(lost, allow_graceful=False)
            async with asyncio.timeout(60):
                # its worker lives on for a moment
                while gone in [place.node for place in executor.places(session.state)]:
                    await session.step(request(), given, {})
            await session.step(request(), given, {})
            assert len(executor.places(session.state)) == 2 and not session.problems
            found, steps = dict((await session.parameters())[1]), session.state.version
            assert distance(found, await alone(steps, tmp_path / "alone")) < 1e-6
            executor.release(session.state)

    asyncio.run(run())
