"""Quotas of API keys: what one has begun and under way is bounded, and no other key feels it."""

import signal
import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import httpx
import pytest
from curvserve_client import Client, QuotaExceeded, connect
from curvserve_client.errors import SessionExists

from curvserve.api_keys import new_key
from tests.server.api import SessionApi, body, code
from tests.server.documented import check_documented
from tests.server.gated import BATCH, Gated, gated_server
from tests.server.process import PATIENCE, Server, serving
from tests.server.test_cli import refused
from tests.server.test_observation import samples
from tests.server.test_overload import open_gate
from tests.server.tiny import REFERENCE

REFUSALS = "curvserve_quota_refusals_total"
NAMES = ("loop", "other", "keeper")
KEYS = {
    "loop": new_key("loop", ["train"]),
    "other": new_key("other", ["train"], sessions=3, requests=0),
    "keeper": new_key("keeper", ["admin"]),
}


def write_keys(folder: Path, **more: str) -> str:
    """Write the keys, with more lines for the entries of some."""
    path = folder / "keys.toml"
    entries = (KEYS[name][1].to_toml() + more.get(name, "") for name in NAMES)
    path.write_text("\n\n".join(entries))
    path.chmod(0o600)
    return str(path)


@contextmanager
def calling(server: Server, name: str) -> Iterator[httpx.Client]:
    """Plain calls with a key, each answer held against what is documented."""
    headers = {"authorization": f"Bearer {KEYS[name][0]}"}
    hooks = {"response": [check_documented]}
    with httpx.Client(
        base_url=server.address, timeout=PATIENCE, headers=headers, event_hooks=hooks
    ) as http:
        yield http


@contextmanager
def clients(server: Server) -> Iterator[list[Client]]:
    """A client of each key."""
    with ExitStack() as stack:
        yield [stack.enter_context(Client(server.address, api_key=KEYS[n][0])) for n in NAMES]


def of_key(http: httpx.Client, sample: str, key: str, **labels: str) -> float:
    """A key's value of a sample."""
    return samples(http)[sample][frozenset({"key": key, **labels}.items())]


def test_a_key_begins_as_many_sessions_as_it_may_before_a_restart_and_after(tmp_path: Path) -> None:
    arguments = (
        *("--model", REFERENCE, "--data-dir", str(tmp_path / "data"), "--sessions-per-key", "1"),
        *("--api-keys", write_keys(tmp_path), "--log-level", "error"),
    )
    with serving(*arguments) as server, clients(server) as (loop, other, keeper):
        assert loop.create_session("tiny", "first").info().owner == "loop"
        assert loop.session("tiny").info().owner == ""  # the server's own counts for nobody
        with pytest.raises(QuotaExceeded) as caught:
            loop.create_session("tiny", "second")
        assert caught.value.retry_after is None  # waiting does not help
        assert "live sessions that the API key 'loop' has begun: 1; expected at most 1" in str(
            caught.value
        )
        with pytest.raises(SessionExists):
            loop.create_session("tiny", "first")
        for name in ("a", "b", "c"):  # as its own entry says
            other.create_session("tiny", name)
        with pytest.raises(QuotaExceeded, match="'other' has begun: 3; expected at most 3"):
            other.create_session("tiny", "d")
        server.process.kill()
        assert server.process.wait(PATIENCE) == -signal.SIGKILL
    with serving(*arguments) as server, clients(server) as (loop, other, keeper):
        assert {each.name: each.owner for each in loop.sessions()} == {
            "tiny": "", "first": "loop", "a": "other", "b": "other", "c": "other",
        }  # fmt: skip
        for full in (loop, other):
            with pytest.raises(QuotaExceeded):
                full.create_session("tiny")
        with calling(server, "keeper") as http:
            assert of_key(http, "curvserve_key_sessions", "loop") == 1
            assert of_key(http, "curvserve_key_sessions", "other") == 3
            assert of_key(http, REFUSALS, "loop", quota="sessions") == 1
            assert of_key(http, REFUSALS, "keeper", quota="sessions") == 0
        keeper.delete_session("first")
        loop.create_session("tiny", "second")
        keeper.create_session("tiny", "third")


def test_a_session_that_could_not_be_begun_is_not_counted(tmp_path: Path) -> None:
    keys = ("--api-keys", write_keys(tmp_path), "--sessions-per-key", "1", "--log-level", "error")
    with serving("--model", REFERENCE, *keys) as server, calling(server, "loop") as http:
        wrong = {"model": "tiny", "rule": {"name": "sgd", "lr": -1.0}}
        assert code(http.post("/v1/sessions", json=wrong)) == "invalid_rule"
        lost = {"model": "tiny", "from_checkpoint": "tiny/none"}
        assert code(http.post("/v1/sessions", json=lost)) == "unknown_checkpoint"
        assert http.post("/v1/sessions", json={"model": "tiny"}).status_code == 201
        refused = http.post("/v1/sessions", json={"model": "tiny"})
        assert (code(refused), refused.status_code) == ("quota_exceeded", 429)
        assert "retry-after" not in refused.headers


def until(http: httpx.Client, requests: int) -> None:
    """Return once so many requests of the key `loop` wait or are computed."""
    for _ in range(10_000):
        if of_key(http, "curvserve_key_requests", "loop") == requests:
            return
    pytest.fail(f"{requests} requests never were under way")


@contextmanager
def busy(folder: Path, *arguments: str) -> Iterator[tuple[Gated, httpx.Client, httpx.Client]]:
    """A gated server, and plain calls of the keys `loop` and `other`."""
    keys = ("--api-keys", write_keys(folder), "--log-level", "error")
    with (
        gated_server(*keys, *arguments) as gated,
        calling(gated.server, "loop") as loop,
        calling(gated.server, "other") as other,
    ):
        yield gated, loop, other


def test_requests_of_a_key_are_counted_over_all_sessions_and_others_go_on(tmp_path: Path) -> None:
    with busy(tmp_path, "--requests-per-key", "2") as (gated, loop, other):
        loop.post("/v1/sessions", json={"model": "gated", "name": "second"})
        one, two, others = (
            SessionApi(loop, "gated"),
            SessionApi(loop, "second"),
            SessionApi(other, "gated"),
        )
        with open_gate(gated):
            done = one.send("step", body(BATCH), key="done")
        computes = gated.pool.submit(one.send, "step", body(BATCH), key="computes")
        computing = gated.gate.accept()[0]
        waits = gated.pool.submit(two.send, "evaluate", body(BATCH))
        until(other, 2)
        for session in (one, two):
            refused = session.send("step", body(BATCH))
            assert (code(refused), refused.status_code) == ("quota_exceeded", 429)
            assert int(refused.headers["retry-after"]) >= 1
            assert refused.json()["expected"] == "at most 2 at a time"
            assert "the API key 'loop'" in refused.json()["detail"]
        assert code(two.send("optim_step", b"{}", media_type="application/json")) == (
            "quota_exceeded"
        )
        again = one.send("step", body(BATCH), key="done")  # carried out before
        assert (again.status_code, again.json()["version"]) == (200, done.json()["version"])
        assert code(one.send("step", body(BATCH), key="computes")) == "in_flight"
        assert one.get("parameters").status_code == 200  # nothing that waits or computes
        goes_on = gated.pool.submit(others.send, "step", body(BATCH))
        with (
            connect(gated.server.address, session="second", api_key=KEYS["loop"][0]) as patient,
            open_gate(gated),
        ):
            refusals = of_key(other, REFUSALS, "loop", quota="requests")
            comes_again = gated.pool.submit(patient.evaluate, BATCH["inputs"], BATCH["targets"])
            while of_key(other, REFUSALS, "loop", quota="requests") == refusals:
                pass  # the client is refused, and waits as long as it is told
            computing.close()
            assert computes.result().json()["version"] == 2
            assert goes_on.result().json()["version"] == 3
            assert waits.result().status_code == 200
            assert comes_again.result().samples == len(BATCH["inputs"])
        until(other, 0)
        assert refusals == 3
        assert of_key(other, REFUSALS, "other", quota="requests") == 0


def test_a_refusal_comes_before_the_body(tmp_path: Path) -> None:
    with busy(tmp_path, "--requests-per-key", "1") as (gated, loop, other):
        first = gated.pool.submit(SessionApi(loop, "gated").send, "step", body(BATCH))
        with gated.gate.accept()[0]:
            url = httpx.URL(gated.server.address)
            head = (
                "POST /v1/sessions/gated/step HTTP/1.1\r\nhost: curvserve\r\n"
                f"authorization: Bearer {KEYS['loop'][0]}\r\n"
                "if-match: *\r\nidempotency-key: new\r\n"
                "content-type: application/vnd.safetensors\r\ncontent-length: 100\r\n"
                "expect: 100-continue\r\n\r\n"
            )
            assert url.port is not None
            with socket.create_connection((url.host, url.port), timeout=PATIENCE) as connection:
                connection.sendall(head.encode())  # and not a byte of the body
                assert connection.recv(12) == b"HTTP/1.1 429"  # not 100
        assert first.result().json()["version"] == 1


def test_a_hangup_has_new_numbers_count_at_once(tmp_path: Path) -> None:
    keys = ("--api-keys", write_keys(tmp_path), "--sessions-per-key", "1")
    with serving("--model", REFERENCE, *keys, log=True) as server, clients(server) as (loop, *_):
        loop.create_session("tiny")
        with pytest.raises(QuotaExceeded):
            loop.create_session("tiny")
        write_keys(tmp_path, loop="sessions = 0")  # no limit
        server.process.send_signal(signal.SIGHUP)
        server.logged("read 3 API keys")
        for _ in range(3):
            loop.create_session("tiny")
        write_keys(tmp_path, loop="sessions = 2")
        server.process.send_signal(signal.SIGHUP)
        server.logged("read 3 API keys")
        assert len(loop.sessions()) == 5  # those that there are go on
        with pytest.raises(QuotaExceeded, match="has begun: 4; expected at most 2"):
            loop.create_session("tiny")


@pytest.mark.parametrize("quota", ["--sessions-per-key", "--requests-per-key"])
def test_a_quota_without_keys_is_refused_at_the_start(quota: str) -> None:
    assert "give --api-keys FILE" in refused("serve", "--port", "0", quota, "1")
