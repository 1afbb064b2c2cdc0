"""Through a network that drops, cuts, delays and doubles, a client trains as without it."""

import json
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from dataclasses import replace
from pathlib import Path

import pytest

from tests.crash.client import Client, Service
from tests.crash.workload import Workload, workloads
from tests.network.proxy import FAULTS, Proxy
from tests.server.api import equal
from tests.server.process import serving

MODELS = ("--model", "tests.crash.model:tiny", "--model", "tests.crash.model:normalised")


@pytest.fixture
def server(tmp_path: Path) -> Iterator[str]:
    """The address of a server that keeps its steps."""
    kept = ("--data-dir", str(tmp_path), "--durability", "process", "--log-level", "warning")
    with serving(*MODELS, *kept) as found:
        yield found.address


def train(address: str, works: Sequence[Workload], changes: int) -> list[Client]:
    """Have clients make so many changes each, all at the same time."""
    service = Service(address)
    service.told(serving=True)

    def work(each: Workload) -> Client:
        client = Client(each, service)
        client.create()
        client.advance_to(changes)
        return client

    with ThreadPoolExecutor(len(works)) as pool:
        return list(pool.map(work, works))


def check_pair(request: bytes, *answers: bytes) -> None:
    """Both are told the same, or that the change is being made just now."""
    if b"idempotency-key" in request.lower():
        told = [document for answer in answers if (document := told_in(answer)) is not None]
        assert told[1:] == told[:-1]


def told_in(answer: bytes) -> dict[str, object] | None:
    head, _, body = answer.partition(b"\r\n\r\n")
    document = dict(json.loads(body))
    if document.get("code") == "in_flight":
        return None
    assert head.startswith(b"HTTP/1.1 200 "), answer
    del document["durable_version"]
    return document


def check(server: str, changes: int, seed: int) -> None:
    """Train through the proxy and beside it, and compare every answer and the last states."""
    straight = [replace(work, name=f"{work.name}-straight") for work in workloads(seed)]
    with ExitStack() as stack:
        proxy = stack.enter_context(Proxy(server, seed))
        disturbed = train(proxy.address, workloads(seed), changes)
        assert proxy.faults.keys() >= FAULTS.keys()
        for pair in proxy.pairs:
            check_pair(*pair)
        undisturbed = train(server, straight, changes)
        for client in (*disturbed, *undisturbed):
            stack.enter_context(closing(client))
        for client, other in zip(disturbed, undisturbed, strict=True):
            assert client.answers == other.answers
            assert client.get().json()["version"] == changes
            assert equal(client.state("end")[0], other.state("end")[0])


def test_two_hundred_steps_through_a_bad_network_are_those_of_a_good_one(
    server: str, capfd: pytest.CaptureFixture[str]
) -> None:
    check(server, changes=50, seed=1)
    assert capfd.readouterr().err == ""


@pytest.mark.campaign
@pytest.mark.parametrize("seed", range(2, 6))
def test_a_thousand_steps_through_a_bad_network_are_those_of_a_good_one(
    server: str, seed: int
) -> None:
    check(server, changes=250, seed=seed)
