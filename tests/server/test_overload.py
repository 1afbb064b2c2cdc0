"""More than the server can take, callers that leave, and the end: what is done, what is refused."""

import json
import resource
import signal
import socket
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import httpx
import pytest

from tests.server.api import SessionApi, body, code, digits
from tests.server.gated import BATCH, Gated, gated_server
from tests.server.process import PATIENCE, serving
from tests.server.raw import connect, read_answer, request

STEP = "/v1/sessions/gated/step"


def step_bytes(key: str) -> bytes:
    """Return a whole step request."""
    headers = (
        "content-type: application/vnd.safetensors",
        "if-match: *",
        f"idempotency-key: {key}",
    )
    return request("POST", STEP, *headers, body=body(BATCH))


def depth(http: httpx.Client, session: str = "gated") -> int:
    """Return how many requests of a session wait or are computed."""
    sample = f'curvserve_queue_depth{{session="{session}"}} '
    lines = http.get("/metrics").text.splitlines()
    return int(float(next(line for line in lines if line.startswith(sample)).split()[-1]))


def until(http: httpx.Client, expected: int) -> None:
    """Return once so many requests wait or are computed."""
    for _ in range(10_000):
        if depth(http) == expected:
            return
    pytest.fail(f"{depth(http)} requests wait, not {expected}")


@contextmanager
def open_gate(gated: Gated) -> Iterator[None]:
    """Let every computation go on that comes to the gate meanwhile."""
    ended = threading.Event()

    def accept() -> None:
        while True:
            connection, _ = gated.gate.accept()
            connection.close()
            if ended.is_set():
                return

    thread = threading.Thread(target=accept)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        socket.create_connection(gated.gate.getsockname()).close()
        thread.join(PATIENCE)


def test_what_is_beyond_the_queue_is_refused_at_once_and_the_rest_goes_on() -> None:
    with gated_server("--queue", "4") as gated:
        first, computing = gated.begin_step()
        more = [gated.pool.submit(gated.session.send, "step", body(BATCH)) for _ in range(3)]
        until(gated.session.http, 4)
        for _ in range(40):  # ten times as many as it takes
            refused = gated.session.send("step", body(BATCH))
            assert (code(refused), refused.status_code) == ("overloaded", 429)
            assert int(refused.headers["retry-after"]) >= 1
            assert refused.json()["expected"] == "at most 4 at a time"
        assert code(gated.session.send("evaluate", body(BATCH))) == "overloaded"
        with open_gate(gated):
            computing.close()
            versions = [answer.result().json()["version"] for answer in (first, *more)]
        assert sorted(versions) == [1, 2, 3, 4]
        assert gated.session.get().json()["version"] == 4


def test_who_leaves_before_the_turn_takes_the_step_along() -> None:
    with gated_server() as gated:
        first, computing = gated.begin_step()
        with connect(gated.server.address) as leaving:
            leaving.sendall(step_bytes("left"))
            until(gated.session.http, 2)
        until(gated.session.http, 1)
        computing.close()
        assert first.result().json()["version"] == 1
        with open_gate(gated):
            again = gated.session.send("step", body(BATCH), key="left")
        assert again.json()["version"] == 2  # it had not been taken before


def test_who_leaves_later_finds_the_step_taken() -> None:
    with gated_server() as gated:
        with connect(gated.server.address) as leaving:
            leaving.sendall(step_bytes("left"))
            computing = gated.gate.accept()[0]
        computing.close()
        until(gated.session.http, 0)
        again = gated.session.send("step", body(BATCH), key="left")
        assert (again.json()["version"], again.headers["etag"]) == (1, '"1"')
        assert gated.session.get().json()["version"] == 1


def test_after_a_deadline_nothing_is_applied_and_the_slot_stays_taken() -> None:
    with gated_server("--work-seconds", "3", "--queue", "1") as gated:
        step, computing = gated.begin_step(key="late")
        with computing:
            assert (code(step.result()), step.result().status_code) == ("deadline_exceeded", 504)
            assert code(gated.session.send("step", body(BATCH), key="late")) == "overloaded"
            assert gated.session.get().json()["version"] == 0
        until(gated.session.http, 0)
        assert gated.session.get().json()["version"] == 0
        with open_gate(gated):
            assert gated.session.send("step", body(BATCH), key="late").json()["version"] == 1


def test_a_deadline_that_passes_in_the_queue_says_so() -> None:
    with gated_server("--work-seconds", "0.5") as gated:
        first, computing = gated.begin_step()
        with computing:
            waiting = gated.session.send("step", body(BATCH), key="waiting")
            assert code(waiting) == "deadline_exceeded"
            assert "waited for its turn" in waiting.json()["detail"]
            assert code(first.result()) == "deadline_exceeded"


def test_control_calls_never_wait_behind_a_step() -> None:
    with gated_server() as gated:
        http, session = gated.session.http, gated.session
        step, computing = gated.begin_step()
        with computing:
            made = http.post("/v1/sessions", json={"model": "gated", "name": "other"})
            assert made.status_code == 201
            kept = http.post(f"{session.path}/checkpoints", json={"name": "one"})
            assert kept.status_code == 201
            from_there = {"model": "gated", "name": "third", "from_checkpoint": "gated/one"}
            assert http.post("/v1/sessions", json=from_there).status_code == 201
            for path in (
                "/livez",
                "/readyz",
                "/metrics",
                "/openapi.json",
                "/v1/models",
                "/v1/sessions",
                session.path,
                f"{session.path}/parameters",
                f"{session.path}/checkpoints",
                f"{session.path}/checkpoints/one",
                f"{session.path}/history",
            ):
                assert http.get(path).status_code == 200, path
            assert http.delete("/v1/sessions/other").status_code == 204
            assert not step.done()
        assert step.result().json()["version"] == 1


def test_a_session_that_is_deleted_while_its_step_computes_is_gone_at_once() -> None:
    with gated_server() as gated:
        step, computing = gated.begin_step()
        with computing:
            assert gated.session.http.delete(gated.session.path).status_code == 204
            assert gated.session.get().status_code == 404
        assert code(step.result()) == "unknown_session"


def events(stream: httpx.Response) -> Iterator[tuple[int, str, dict[str, object]]]:
    """Yield number, kind and members of server-sent events; readings have no number."""
    fields: dict[str, str] = {}
    for line in stream.iter_lines():
        name, _, value = line.partition(": ")
        if line:
            fields[name] = value
        else:
            if "id" in fields:
                yield int(fields["id"]), fields["event"], json.loads(fields["data"])
            fields = {}


def test_events_are_told_as_they_happen_and_again_on_request_and_end_with_the_server() -> None:
    with gated_server("--shutdown-seconds", "20") as gated:
        http = gated.session.http
        with http.stream("GET", "/v1/events", headers={"last-event-id": "0"}) as stream:
            told = events(stream)
            first, kind, _ = next(told)
            assert kind == "created"
            with open_gate(gated):
                gated.session.send("step", body(BATCH))
            number, kind, members = next(told)
            assert (number, kind) == (first + 1, "step")
            assert (members["session"], members["version"]) == ("gated", 1)
            gated.server.process.terminate()
            assert list(told) == []
        assert gated.server.process.wait(PATIENCE) == 0


def test_a_server_that_stops_is_not_ready_first_then_closes_and_finishes_its_queue() -> None:
    with gated_server("--notice-seconds", "5") as gated:
        http = gated.session.http
        first, computing = gated.begin_step()
        second = gated.pool.submit(gated.session.send, "step", body(BATCH))
        until(http, 2)
        gated.server.process.terminate()
        while (ready := http.get("/readyz")).status_code == 200:
            pass
        assert code(ready) == "draining"
        with connect(gated.server.address) as newcomer:  # the door is still open
            newcomer.sendall(request("GET", "/livez"))
            answer = read_answer(newcomer)
            assert answer is not None and answer.status_code == 200
        with open_gate(gated):
            computing.close()
            assert [first.result().json()["version"], second.result().json()["version"]] == [1, 2]
            assert gated.server.process.wait(PATIENCE) == 0


def test_a_queue_that_takes_too_long_is_told_and_not_applied() -> None:
    with gated_server("--shutdown-seconds", "1") as gated:
        _, computing = gated.begin_step()
        with computing:
            waiting = gated.pool.submit(gated.session.send, "step", body(BATCH))
            until(gated.session.http, 2)
            gated.server.process.terminate()
            assert (code(waiting.result()), waiting.result().status_code) == ("draining", 503)
            # the first one hangs; a thread cannot be ended, so the process is
            assert gated.server.process.wait(PATIENCE) == 1


def test_a_head_that_comes_byte_by_byte_does_not_outlast_its_deadline() -> None:
    with (
        serving("--head-seconds", "1") as server,
        connect(server.address) as slow,
        connect(server.address) as idle,
    ):
        slow.sendall(b"GET /livez HT")
        assert read_answer(idle) is None
        assert read_answer(slow) is None


def test_a_thousand_slow_connections_hinder_nobody() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    pieces = (
        b"",
        b"POST /v1/sess",
        step_bytes("slow")[:-40],
        b"GET /livez HTTP/1.1\r\nhost: a\r\n",
    )
    try:
        with serving("--shutdown-seconds", "10") as server, ExitStack() as stack:
            for number in range(1000):
                slow = stack.enter_context(connect(server.address))
                slow.sendall(pieces[number % 4].replace(b"/gated/", b"/mnist_cnn/"))
            with httpx.Client(base_url=server.address, timeout=PATIENCE) as http:
                session = SessionApi(http, "mnist_cnn")
                for version in range(1, 6):
                    assert session.send("step", body(digits())).json()["version"] == version
                assert http.get("/livez").status_code == 200
            server.process.send_signal(signal.SIGTERM)
            assert server.process.wait(PATIENCE) == 0
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
