"""Steps that are sent before the answer to the one before is here."""

import threading
from collections.abc import Iterator
from dataclasses import dataclass, field

import httpx
import pytest
from curvserve_client import (
    NonFinite,
    PipelineBroken,
    RemoteSession,
    StepResult,
    connect,
)

from tests.client.comparing import Batches, same


@pytest.mark.parametrize("window", [1, 2, 4])
def test_the_results_are_those_of_steps_one_by_one(
    session: RemoteSession, twin: RemoteSession, batches: Batches, window: int
) -> None:
    with session.pipeline(window) as pipeline:
        futures = [pipeline.step(*batch, lr=0.02) for batch in batches * 3]
        results = [future.result() for future in futures]
    assert results == [twin.step(*batch, lr=0.02) for batch in batches * 3]
    assert session.version == 12
    assert session.step(*batches[0]) == twin.step(*batches[0])
    assert same(session, twin)


@dataclass
class Overtaking(httpx.BaseTransport):
    """Keeps every second step until the one after it has been answered or refused."""

    real: httpx.HTTPTransport
    count: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)
    passed: threading.Event = field(default_factory=threading.Event)

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        """Carry a request."""
        if not request.url.path.endswith("/step"):
            return self.real.handle_request(request)
        with self.lock:
            self.count += 1
            held = self.count == 1
        body = request.read()
        request = httpx.Request(request.method, request.url, headers=request.headers, content=body)
        if held:
            assert self.passed.wait(60)
        response = self.real.handle_request(request)
        self.passed.set()
        return response

    def close(self) -> None:
        """Close what carries."""
        self.real.close()


@pytest.fixture
def overtaking(server_url: str, session: RemoteSession) -> Iterator[RemoteSession]:
    with httpx.Client(transport=Overtaking(httpx.HTTPTransport())) as http:
        yield connect(server_url, session=session.name, http=http, timeout=60.0)


def test_a_step_that_overtakes_another_waits_for_it(
    overtaking: RemoteSession, session: RemoteSession, twin: RemoteSession, batches: Batches
) -> None:
    with overtaking.pipeline(2) as pipeline:
        futures = [pipeline.step(*batch) for batch in batches]
        assert [future.result().version for future in futures] == [1, 2, 3, 4]
    for batch in batches:
        twin.step(*batch)
    assert same(session, twin)


def test_behind_a_step_that_fails_none_is_made(
    session: RemoteSession, twin: RemoteSession, batches: Batches
) -> None:
    inputs, targets = batches[1]
    outcomes: list[StepResult | BaseException] = []
    with session.pipeline(3) as pipeline:
        futures = [
            pipeline.step(*batches[0]),
            pipeline.step(inputs * 1e30, targets),
            pipeline.step(*batches[2]),
        ]
        outcomes = [future.exception() or future.result() for future in futures]
        with pytest.raises(PipelineBroken, match="was not made"):
            pipeline.step(*batches[3])
        pipeline.drain()
        assert pipeline.step(*batches[3]).result().version == 2
    assert outcomes[0] == twin.step(*batches[0])
    assert isinstance(outcomes[1], NonFinite)
    assert isinstance(outcomes[2], PipelineBroken)
    assert outcomes[2].__cause__ is outcomes[1]
    twin.step(*batches[3])
    assert same(session, twin)


def test_a_window_of_nothing_is_refused(session: RemoteSession) -> None:
    with pytest.raises(ValueError, match="at least 1"):
        session.pipeline(0)


def test_a_shared_session_has_no_pipeline(server_url: str, session: RemoteSession) -> None:
    with (
        connect(server_url, session=session.name, shared=True) as shared,
        pytest.raises(ValueError, match="not known before"),
    ):
        shared.pipeline()
