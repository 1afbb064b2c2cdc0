"""A change whose answer never came: what the caller does next, and that it was made once."""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import httpx
import pytest
from curvserve_client import (
    KeyReused,
    NothingPending,
    RemoteDiagGGNOptimizer,
    RemoteSession,
    StaleVersion,
    connect,
)
from torch import Tensor

from tests.client.comparing import Batches, same


@dataclass
class Line(httpx.BaseTransport):
    """A line to the server on which something happens to the next change, once.

    Attributes:
        real: what carries requests.
        before: whether it happens before the request reaches the server, or after.
        happens: raises, instead of the answer.
    """

    real: httpx.HTTPTransport
    before: bool = False
    happens: Callable[[], None] | None = None

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        """Carry a request."""
        happens = self.happens if "idempotency-key" in request.headers else None
        if happens is not None:
            self.happens = None
            if self.before:
                happens()
        response = self.real.handle_request(request)
        if happens is not None:
            response.read()
            response.close()
            happens()
        return response

    def close(self) -> None:
        """Close what carries."""
        self.real.close()


@contextmanager
def connected(url: str, name: str, **options: str) -> Iterator[tuple[RemoteSession, Line]]:
    line = Line(httpx.HTTPTransport())
    with httpx.Client(transport=line) as http:
        yield connect(url, session=name, http=http, timeout=20.0, **options), line  # type: ignore[arg-type]  # as they came


def interrupted() -> None:
    """What Ctrl-C does."""
    signal.raise_signal(signal.SIGINT)


def broken() -> None:
    """A break that lasts, as one that the caller may not repeat: no retry comes through."""
    raise httpx.InvalidURL("not an error that is tried again")


@pytest.mark.parametrize("before", [True, False], ids=["before", "after"])
@pytest.mark.parametrize("happens", [interrupted, broken])
def test_the_same_step_again_is_its_retry(
    server_url: str,
    session: RemoteSession,
    twin: RemoteSession,
    batches: Batches,
    before: bool,
    happens: Callable[[], None],
) -> None:
    with connected(server_url, session.name) as (remote, line):
        line.before, line.happens = before, happens
        with pytest.raises((KeyboardInterrupt, httpx.InvalidURL)):
            remote.step(*batches[0])
        assert remote.step(*batches[0]) == twin.step(*batches[0])
        assert remote.step(*batches[1]) == twin.step(*batches[1])
    assert same(session, twin)


@pytest.mark.parametrize("before", [True, False], ids=["before", "after"])
def test_another_step_comes_after_the_one_without_an_answer(
    server_url: str, session: RemoteSession, twin: RemoteSession, batches: Batches, before: bool
) -> None:
    with connected(server_url, session.name) as (remote, line):
        line.before, line.happens = before, interrupted
        with pytest.raises(KeyboardInterrupt):
            remote.step(*batches[0])
        twin.step(*batches[0])
        assert remote.step(*batches[1]) == twin.step(*batches[1])
    assert same(session, twin)


def test_a_batch_that_was_written_over_meanwhile_is_sent_as_it_was(
    server_url: str, session: RemoteSession, twin: RemoteSession, batches: Batches
) -> None:
    expected = twin.step(*batches[0])
    inputs, targets = batches[0]
    with connected(server_url, session.name) as (remote, line):
        line.before, line.happens = True, interrupted
        with pytest.raises(KeyboardInterrupt):
            remote.step(inputs, targets)
        inputs.zero_()
        assert remote.settle() == expected
        assert remote.settle() is None


def test_an_optimizer_goes_on_after_an_interruption_in_either_half(
    server_url: str, session: RemoteSession, twin: RemoteSession, batches: Batches
) -> None:
    with connected(server_url, session.name) as (remote, line):
        optimizer = RemoteDiagGGNOptimizer(remote.parameters())
        for before, half in [(True, 0), (False, 0), (True, 1), (False, 1)]:
            line.before = before
            line.happens = interrupted if half == 0 else None
            optimizer.zero_grad()
            try:
                loss = remote.loss(*batches[0])
            except KeyboardInterrupt:
                loss = remote.loss(*batches[0])
            loss.backward()
            line.happens = interrupted if half == 1 else None
            try:
                optimizer.step()
            except KeyboardInterrupt:
                optimizer.step()
            twin.step(*batches[0], lr=0.05, damping=1.0)
    assert session.info().version == 4
    assert same(session, twin)


def test_a_change_that_was_refused_is_not_asked_for_again(
    session: RemoteSession, batches: Batches
) -> None:
    session.core.go_on_from(7)
    with pytest.raises(StaleVersion):
        session.step(*batches[0])
    assert session.settle() is None
    session.info()
    assert session.step(*batches[0]).version == 1


def test_a_program_that_starts_again_gets_the_answer_that_it_had_not_seen(
    server_url: str, session: RemoteSession, batches: Batches
) -> None:
    with connected(server_url, session.name, run="digits-3") as (first, line):
        optimizer = RemoteDiagGGNOptimizer(first.parameters(), lr=0.02)
        optimizer.step_on(*batches[0])
        saved = optimizer.state_dict()
        line.happens = interrupted
        with pytest.raises(KeyboardInterrupt):  # and the program ends here
            optimizer.step_on(*batches[1])
    with connect(server_url, session=session.name, run="digits-3") as second:
        assert second.version == 2
        resumed = RemoteDiagGGNOptimizer(second.parameters())
        resumed.load_state_dict(saved)
        assert resumed.step_on(*batches[1]).version == 2
        resumed.load_state_dict(saved)
        with pytest.raises(KeyReused):
            resumed.step_on(*batches[2])
    with connect(server_url, session=session.name) as third:
        other = RemoteDiagGGNOptimizer(third.parameters())
        other.load_state_dict(saved)
        with pytest.raises(StaleVersion):
            other.step_on(*batches[1])


def test_two_clients_of_one_session_get_a_stale_version_unless_they_share_it(
    server_url: str, session: RemoteSession, batches: Batches
) -> None:
    with (
        connect(server_url, session=session.name) as one,
        connect(server_url, session=session.name) as two,
    ):
        one.step(*batches[0])
        with pytest.raises(StaleVersion):
            two.step(*batches[1])

    def train(batch: tuple[Tensor, Tensor]) -> None:
        with connect(server_url, session=session.name, shared=True) as mine:
            versions.extend(mine.step(*batch).version for _ in range(5))

    versions: list[int] = []
    threads = [threading.Thread(target=train, args=(batch,)) for batch in batches]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(versions) == list(range(2, 22))


def test_a_shared_session_tells_whose_pending_gradient_was_dropped(
    server_url: str, session: RemoteSession, batches: Batches
) -> None:
    with connect(server_url, session=session.name, shared=True) as mine:
        mine.forward_backward(*batches[0])
        session.step(*batches[1])
        with pytest.raises((NothingPending, StaleVersion)):
            mine.optim_step()


def test_threads_of_one_session_take_turns(session: RemoteSession, batches: Batches) -> None:
    versions: list[int] = []

    def train(batch: tuple[Tensor, Tensor]) -> None:
        versions.extend(session.step(*batch).version for _ in range(5))

    threads = [threading.Thread(target=train, args=(batch,)) for batch in batches]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(versions) == list(range(1, 21))
