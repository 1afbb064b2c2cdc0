"""While a step computes, the server answers, and a second writer waits its turn."""

import socket
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass

import httpx
import pytest
import torch

from tests.server.api import SessionApi, body, code
from tests.server.gate import PORT
from tests.server.process import PATIENCE, Server, serving

BATCH = {"inputs": torch.ones(3, 2), "targets": torch.zeros(3, 1)}


@dataclass(frozen=True)
class Gated:
    """A server whose computations stop half-way.

    Attributes:
        server: its process.
        session: its session.
        gate: where a computation says that it is under way.
        pool: threads that wait for answers.
    """

    server: Server
    session: SessionApi
    gate: socket.socket
    pool: ThreadPoolExecutor

    def begin_step(self, key: str = "") -> tuple[Future[httpx.Response], socket.socket]:
        """Send a step; return when it computes, which it does until the socket is closed."""
        answer = self.pool.submit(self.session.send, "step", body(BATCH), key=key)
        return answer, self.gate.accept()[0]


@contextmanager
def gated_server() -> Iterator[Gated]:
    with (
        ThreadPoolExecutor() as pool,
        socket.create_server(("127.0.0.1", 0)) as gate,
        serving("--model", "tests.server.gate:model", **{PORT: str(gate.getsockname()[1])}) as it,
        httpx.Client(base_url=it.address, timeout=PATIENCE) as http,
    ):
        gate.settimeout(PATIENCE)
        yield Gated(it, SessionApi(http, "gated"), gate, pool)


@pytest.fixture(scope="module")
def gated() -> Iterator[Gated]:
    with gated_server() as found:
        yield found


def test_liveness_and_every_reader_answer_while_a_step_computes(gated: Gated) -> None:
    before = gated.session.state()
    step, computing = gated.begin_step()
    with computing:
        probes = [gated.session.http.get(path) for path in ("/livez", "/readyz", "/v1/sessions")]
        assert [probe.status_code for probe in probes] == [200, 200, 200]
        assert gated.session.state() == before
        assert not step.done()
    assert step.result().status_code == 200
    assert gated.session.state() != before


def test_a_key_whose_step_computes_is_in_flight(gated: Gated) -> None:
    step, computing = gated.begin_step(key="in-flight")
    with computing:
        retry = gated.session.send("step", body(BATCH), key="in-flight")
        assert (code(retry), retry.status_code) == ("in_flight", 409)
    first = step.result()
    again = gated.session.send("step", body(BATCH), key="in-flight")
    assert again.json() == first.json()


def test_a_second_writer_waits_and_then_finds_its_version_passed(gated: Gated) -> None:
    version = gated.session.get().json()["version"]
    first, computing = gated.begin_step()
    with computing:
        second = gated.pool.submit(gated.session.send, "step", body(BATCH), version=version)
    assert first.result().json()["version"] == version + 1
    assert code(second.result()) == "stale_version"


def test_a_server_that_is_told_to_stop_finishes_the_step_under_way() -> None:
    with gated_server() as gated:
        step, computing = gated.begin_step()
        with computing:
            gated.server.process.terminate()
        assert step.result().json()["version"] == 1
        assert gated.server.process.wait(PATIENCE) == 0
