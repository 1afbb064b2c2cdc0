"""Stops that are no crashes, and restarts where something is not as it was."""

import re
import signal
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import Future
from pathlib import Path

import httpx
import pytest
import torch

from tests.crash.workload import batch
from tests.server.api import SessionApi, body, code, digits, equal
from tests.server.gated import BATCH, Gated, gated_server
from tests.server.process import PATIENCE, ROOT, Server, serving

TINY = ("--model", "tests.crash.model:tiny")
NORMALISED = ("--model", "tests.crash.model:normalised")

LOOKS = 10_000
"""How often the queue is looked at before a test gives up."""


def kept_in(folder: Path) -> tuple[str, ...]:
    return ("--data-dir", str(folder), "--durability", "process", "--log-level", "error")


def queue(gated: Gated, keys: Sequence[str]) -> list[Future[httpx.Response]]:
    """Send steps that wait behind the one that computes; return when they are in the queue."""
    content = body(BATCH)
    answers = [gated.pool.submit(gated.session.send, "step", content, key=key) for key in keys]
    depth = f'curvserve_queue_depth{{session="gated"}} {float(len(keys) + 1)}'
    assert any(depth in gated.session.http.get("/metrics").text for _ in range(LOOKS))
    return answers


def let_through(gated: Gated, computations: int) -> None:
    for _ in range(computations):
        gated.gate.accept()[0].close()


def check_three_steps(gated: Gated, keys: Sequence[str], computed: int) -> None:
    """Retry three steps, of which so many have to be computed, and compare with three others."""
    retries = [gated.pool.submit(gated.session.send, "step", body(BATCH), key=key) for key in keys]
    let_through(gated, computed)
    assert sorted(retry.result().json()["version"] for retry in retries) == [1, 2, 3]
    gated.session.http.post("/v1/sessions", json={"model": "gated", "name": "other"})
    other = SessionApi(gated.session.http, "other")
    for _ in range(3):
        step = gated.pool.submit(other.send, "step", body(BATCH))
        let_through(gated, 1)
        assert step.result().status_code == 200
    assert equal(gated.session.parameters(), other.parameters())


def test_what_is_queued_when_the_server_is_told_to_stop_is_finished(tmp_path: Path) -> None:
    with gated_server(*kept_in(tmp_path)) as gated:
        first, computing = gated.begin_step(key="a")
        with computing:
            others = queue(gated, "bc")
            gated.server.process.terminate()
        let_through(gated, 2)
        answers = {step.result().json()["version"] for step in (first, *others)}
        assert answers == {1, 2, 3}
        assert gated.server.process.wait(PATIENCE) == 0
    with gated_server(*kept_in(tmp_path)) as gated:
        check_three_steps(gated, "abc", computed=0)


def test_what_the_server_has_no_time_for_is_refused_and_not_applied(tmp_path: Path) -> None:
    with gated_server(*kept_in(tmp_path), "--shutdown-seconds", "0") as gated:
        first, computing = gated.begin_step(key="a")
        with computing:
            others = queue(gated, "bc")
            gated.server.process.terminate()
            assert [code(step.result()) for step in (first, *others)] == ["draining"] * 3
        # 1 where it looked for the end of the computation before there was one
        assert gated.server.process.wait(PATIENCE) in (0, 1)
    with gated_server(*kept_in(tmp_path)) as gated:
        assert gated.session.get().json()["version"] == 0
        check_three_steps(gated, "abc", computed=3)


def test_a_computation_that_never_ends_is_not_applied_and_does_not_keep_the_server(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    with gated_server(*kept_in(tmp_path), "--shutdown-seconds", "0") as gated:
        first, computing = gated.begin_step(key="a")
        with computing:
            gated.server.process.terminate()
            assert gated.server.process.wait(PATIENCE) == 1
        assert code(first.result()) == "draining"
    told = capfd.readouterr().err
    assert "a computation did not end in time" in told and "Traceback" not in told
    with gated_server(*kept_in(tmp_path)) as gated:
        assert gated.session.get().json()["version"] == 0
        check_three_steps(gated, "abc", computed=3)


def test_a_second_server_on_the_same_folder_is_refused_in_one_line(tmp_path: Path) -> None:
    with serving(*TINY, *kept_in(tmp_path)) as first:
        command = [sys.executable, "-m", "curvserve", "serve", "--port", "0", *TINY]
        second = subprocess.run(
            [*command, *kept_in(tmp_path)], capture_output=True, text=True, cwd=ROOT
        )
        assert (second.returncode, second.stdout) == (1, "")
        assert second.stderr == (
            f"curvserve: the data folder {tmp_path} belongs to process {first.process.pid}; "
            "stop it or choose another folder\n"
        )
        assert httpx.get(f"{first.address}/readyz").status_code == 200


def test_a_session_whose_model_is_not_served_any_more_is_told_of_and_kept(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    with serving(*TINY, *kept_in(tmp_path)) as server:
        before = state(server, "tiny", steps=2)
    with serving(*NORMALISED, *kept_in(tmp_path)) as server:
        told = capfd.readouterr().err
        assert "session tiny: its model 'tiny' is not served; it is kept, and not served" in told
        assert code(httpx.get(f"{server.address}/v1/sessions/tiny")) == "unknown_session"
        taken = {"model": "normalised", "name": "tiny"}
        answer = httpx.post(f"{server.address}/v1/sessions", json=taken)
        assert code(answer) == "session_exists"
    with serving(*TINY, *NORMALISED, *kept_in(tmp_path)) as server:
        assert state(server, "tiny") == before
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("model", ["tests.crash.model:tiny", "mnist_cnn"])
def test_other_bits_with_another_number_of_threads_are_told_and_the_same_bits_are_no_problem(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], model: str
) -> None:
    name = model.rpartition(":")[2]
    with serving("--model", model, *kept_in(tmp_path), OMP_NUM_THREADS="1") as server:
        before = state(server, name, steps=3)
        server.process.send_signal(signal.SIGKILL)
        server.process.wait(PATIENCE)
    with serving("--model", model, *kept_in(tmp_path), OMP_NUM_THREADS="2") as server:
        after = state(server, name)
        problems = httpx.get(f"{server.address}/v1/sessions/{name}").json()["problems"]
    assert after[:2] == before[:2]
    said = capfd.readouterr().err
    if after == before:
        assert (problems, said) == ([], "")
    else:
        (problem,) = problems
        assert re.match(r"version [123] was repeated with other bits", problem)
        assert "threads was 1, is 2; OMP_NUM_THREADS was 1, is 2" in problem
        assert problem in said


def state(server: Server, name: str, steps: int = 0) -> tuple[str, int, bytes]:
    """Return version, steps and the parameters' bytes of a session, after so many more steps."""
    content = body(digits(64) if name == "mnist_cnn" else batch(torch.Generator()))
    with httpx.Client(base_url=server.address, timeout=PATIENCE) as http:
        session = SessionApi(http, name)
        for _ in range(steps):
            assert session.send("step", content).status_code == 200
        return session.state()
