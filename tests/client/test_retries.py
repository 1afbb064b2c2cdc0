"""Which failed attempts are made again: the table, and the table at work."""

import itertools
from collections.abc import Callable, Iterable

import pytest
from curvserve_client import (
    Client,
    ConnectionFailed,
    CurvserveError,
    Draining,
    InFlight,
    NoDevice,
    NonFinite,
    Overloaded,
    ProtocolError,
    QuotaExceeded,
    RemoteSession,
    StaleVersion,
    StorageFailed,
    Unreachable,
    WorkersLost,
)
from curvserve_client.errors import PROBLEMS, problem_document
from curvserve_client.retries import FIRST_PAUSE, LONGEST_PAUSE, RETRIED, Again, Attempt
from curvserve_client.transport import Transport

from .servers import Peer, Received, answering, closed_port, http_json, serving
from .test_transport import BATCH, INFO, PROBLEM, STEP

BROKEN = b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\n{"
MODELS = http_json({"models": []})


def problem(code: str, retry_after: int | None = None) -> bytes:
    """An answer that tells a problem of the contract."""
    error = PROBLEMS[code]("said so")
    answer = http_json(problem_document(error), error.status, PROBLEM)
    if retry_after is None:
        return answer
    head, _, body = answer.partition(b"\r\n\r\n")
    return head + f"\r\nRetry-After: {retry_after}\r\n\r\n".encode() + body


def one_after_another(answers: Iterable[bytes]) -> Callable[[Peer], None]:
    """Answer each request with the next of the answers, each on a connection of its own."""
    remaining = iter(answers)

    def talk(peer: Peer) -> None:
        if peer.receive() is not None:
            peer.send(next(remaining))

    return talk


def attempt(**members: float) -> Attempt:
    return Attempt(**{"number": 1, "repeatable": True, "acquainted": True, "left": 60.0} | members)  # type: ignore[arg-type]  # members of any type


ALWAYS = [error for error, again in RETRIED.items() if again is Again.ALWAYS]
ASKED = [error for error, again in RETRIED.items() if again is Again.IF_ASKED]
SOMETIMES = [error for error, again in RETRIED.items() if again is Again.IF_REPEATABLE]


def test_the_table_is_the_contracts() -> None:
    assert set(ALWAYS) == {Unreachable, Overloaded, Draining, NoDevice, WorkersLost}
    assert set(SOMETIMES) == {ConnectionFailed, InFlight}
    assert set(ASKED) == {QuotaExceeded}
    assert RETRIED.keys() == {*ALWAYS, *SOMETIMES, *ASKED}


@pytest.mark.parametrize("error", [NonFinite("x"), StaleVersion("x"), StorageFailed("x")], ids=repr)
def test_what_is_not_in_the_table_is_told_at_once(error: CurvserveError) -> None:
    assert attempt().pause(error) is None


@pytest.mark.parametrize("repeatable", [True, False])
def test_a_quota_is_waited_for_only_where_the_server_says_how_long(repeatable: bool) -> None:
    tried = attempt(repeatable=repeatable)
    assert tried.pause(QuotaExceeded("as many sessions as it may have")) is None
    pause = tried.pause(QuotaExceeded("as many requests as it may have", retry_after=1))
    assert pause is not None and 1 <= pause <= 1 + FIRST_PAUSE


@pytest.mark.parametrize("kind", SOMETIMES)
def test_what_may_have_been_done_is_repeated_only_where_that_does_no_harm(
    kind: type[CurvserveError],
) -> None:
    assert attempt().pause(kind("x")) is not None
    assert attempt(repeatable=False).pause(kind("x")) is None


def test_a_server_that_has_never_answered_is_not_waited_for() -> None:
    assert attempt(acquainted=False).pause(Unreachable("x")) is None
    assert attempt(acquainted=False).pause(ConnectionFailed("x")) is None
    assert attempt(acquainted=False).pause(Draining("x")) is not None


def test_pauses_are_jittered_grow_and_are_bounded() -> None:
    for number in range(1, 40):
        bound = min(LONGEST_PAUSE, FIRST_PAUSE * 2 ** (number - 1))
        pauses = [attempt(number=number).pause(Draining("x")) for _ in range(200)]
        assert all(p is not None and 0 <= p <= bound for p in pauses)
        assert len(set(pauses)) == 200
        assert max(p or 0 for p in pauses) > bound / 2


def test_the_server_says_how_long_at_least() -> None:
    pauses = [attempt().pause(Overloaded("x", retry_after=3)) for _ in range(100)]
    assert all(p is not None and 3 <= p <= 3 + FIRST_PAUSE for p in pauses)


def test_a_pause_past_the_deadline_is_none() -> None:
    assert attempt(left=2.0).pause(Overloaded("x", retry_after=3)) is None


@pytest.mark.parametrize(
    "failures",
    [[BROKEN], [b""], [problem("overloaded", 0)], [problem("draining")], [problem("in_flight")],
     [problem("in_flight"), BROKEN, problem("overloaded"), b""]],
    ids=["broken", "none", "overloaded", "draining", "in flight", "all"],
)  # fmt: skip
def test_a_step_is_sent_again_with_the_same_key(failures: list[bytes]) -> None:
    answers = [http_json(INFO.to_dict()), *failures, http_json(STEP)]
    with (
        serving(one_after_another(answers)) as server,
        RemoteSession(Transport(server.url, 10.0), INFO, owner=True) as session,
    ):
        session.info()
        assert session.step(*BATCH).version == 4
    first, *others = server.requests[1:]
    assert len(others) == len(failures)
    assert all(alike(first, other) for other in others)


def alike(one: Received, other: Received) -> bool:
    names = ("idempotency-key", "if-match")
    return one.body == other.body and all(one.headers[n] == other.headers[n] for n in names)


def test_what_makes_a_session_is_not_sent_twice() -> None:
    with (
        serving(one_after_another([MODELS, BROKEN])) as server,
        Client(server.url) as client,
    ):
        client.models()
        with pytest.raises(ConnectionFailed):
            client.create_session("mnist_cnn")
    assert len(server.requests) == 2


def test_a_server_that_is_full_for_good_is_told_of_within_the_deadline() -> None:
    with (
        serving(one_after_another(itertools.repeat(problem("overloaded")))) as server,
        Client(server.url, timeout=0.5) as client,
        pytest.raises(Overloaded) as caught,
    ):
        client.models()
    assert caught.value.__notes__ == [f"tried {len(server.requests)} times"]
    assert len(server.requests) > 1


def test_a_server_that_asks_for_more_time_than_there_is_is_not_waited_for() -> None:
    with (
        answering(problem("draining", 3600)) as server,
        Client(server.url, timeout=60.0) as client,
        pytest.raises(Draining) as caught,
    ):
        client.models()
    assert caught.value.retry_after == 3600
    assert len(server.requests) == 1


def test_nobody_listens_and_that_is_told_at_once() -> None:
    url = f"http://127.0.0.1:{closed_port()}"
    with Client(url) as client, pytest.raises(Unreachable, match=url):
        client.models()


def test_another_version_of_the_protocol_is_named() -> None:
    answer = http_json({"code": "too_early", "detail": "new in version 2"}, 422, PROBLEM)
    with (
        answering(answer) as server,
        Client(server.url) as client,
        pytest.raises(ProtocolError, match="unknown code 'too_early': new in version 2"),
    ):
        client.models()


def test_waiting_is_told_where_a_person_watches(caplog: pytest.LogCaptureFixture) -> None:
    answers = [problem("overloaded"), problem("overloaded"), MODELS]
    with serving(one_after_another(answers)) as server, Client(server.url) as client:
        client.models()
    (record,) = [each for each in caplog.records if each.name == "curvserve_client"]
    assert "said so" in record.getMessage()
    assert record.getMessage().endswith("trying again for 60 s at most")


def test_the_same_call_after_the_last_attempt_has_the_same_key() -> None:
    proxied = [http_json(INFO.to_dict()), *[BROKEN] * 3]
    with (
        serving(one_after_another(proxied)) as server,
        RemoteSession(Transport(server.url, 0.3), INFO, owner=True) as broken,
    ):
        for _ in range(2):
            with pytest.raises(CurvserveError):
                broken.step(*BATCH)
    keys = {request.headers["idempotency-key"] for request in server.requests}
    assert len(server.requests) >= 2 and len(keys) == 1
