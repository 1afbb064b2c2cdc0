"""The client through a network that drops, cuts, delays and doubles, and through a good one."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack

import pytest
import torch
from curvserve_client import (
    Client,
    ConnectionFailed,
    DiagGGN,
    RemoteDiagGGNOptimizer,
    RemoteSession,
    connect,
)
from torch import Tensor

from tests.crash.model import CLASSES, INPUTS
from tests.network.proxy import FAULTS, Proxy
from tests.server.process import serving

ATTEMPTS = 100
"""How often a first connection is tried: one that has never been answered is not tried again."""

Loop = Callable[[RemoteSession, int], None]


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    """The address of a server with a small model."""
    with serving("--model", "tests.crash.model:tiny", "--log-level", "warning") as found:
        yield found.address


def batch(step: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(step)
    inputs = torch.randn(8, INPUTS, generator=generator)
    return inputs, torch.randint(CLASSES, (8,), generator=generator)


def fused(session: RemoteSession, steps: int) -> None:
    optimizer = RemoteDiagGGNOptimizer(session.parameters(), lr=0.1)
    for step in range(steps):
        assert optimizer.step_on(*batch(step)).version == step + 1


def ordinary(session: RemoteSession, steps: int) -> None:
    optimizer = RemoteDiagGGNOptimizer(session.parameters(), lr=0.1)
    for step in range(steps):
        optimizer.zero_grad()
        session.loss(*batch(step)).backward()
        torch.nn.utils.clip_grad_norm_(session.parameters(), 0.5)
        optimizer.step()
        assert session.version == step + 1


def pipelined(session: RemoteSession, steps: int) -> None:
    with session.pipeline(3) as pipeline:
        futures = [pipeline.step(*batch(step), lr=0.1) for step in range(steps)]
    assert [future.result().version for future in futures] == list(range(1, steps + 1))


LOOPS = [fused, ordinary, pipelined]


def trained(server: str, loop: Loop, steps: int, proxy: Proxy | None = None) -> dict[str, Tensor]:
    """Train a new session, through a proxy or beside it, and return its parameters."""
    with Client(server) as client, ExitStack() as stack:
        name = client.create_session("tiny", seed=3, rule=DiagGGN(momentum=0.9)).name
        address = server if proxy is None else proxy.address
        loop(stack.enter_context(reached(address, name)), steps)
        parameters = client.session(name).pull()
        client.delete_session(name)
    return parameters


def reached(address: str, name: str) -> RemoteSession:
    for _ in range(ATTEMPTS):
        try:
            return connect(address, session=name)
        except ConnectionFailed:
            continue
    raise AssertionError("no request came through")


def check(server: str, loop: Loop, steps: int, seed: int) -> None:
    with Proxy(server, seed) as proxy:
        disturbed = trained(server, loop, steps, proxy)
        assert proxy.faults.keys() >= FAULTS.keys()
    expected = trained(server, loop, steps)
    assert all(torch.equal(disturbed[name], tensor) for name, tensor in expected.items())


@pytest.mark.parametrize("loop", LOOPS)
def test_sixty_steps_through_a_bad_network_are_those_of_a_good_one(server: str, loop: Loop) -> None:
    check(server, loop, steps=60, seed=1)


@pytest.mark.campaign
@pytest.mark.parametrize("loop", LOOPS)
def test_a_thousand_steps_through_a_bad_network_are_those_of_a_good_one(
    server: str, loop: Loop
) -> None:
    check(server, loop, steps=1000, seed=2)
