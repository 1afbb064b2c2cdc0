"""A server that reaches a cluster through Ray's client, `ray://`."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
import torch
from curvserve_client import Client

from tests.client.servers import closed_port
from tests.server import tiny
from tests.server.process import PATIENCE, serving


@pytest.fixture
def address() -> Iterator[str]:
    """That of a cluster of one node, which this process has not joined."""
    ports = [f"--port={closed_port()}", f"--ray-client-server-port={(client := closed_port())}"]
    command = [Path(sys.executable).with_name("ray"), "start", "--head", "--block", *ports]
    environment = {**os.environ, "RAY_AUTH_MODE": "disabled", "RAY_USAGE_STATS_ENABLED": "0"}
    with subprocess.Popen(
        [*command, "--num-cpus=2", "--include-dashboard=false"],
        env=environment,
        stdout=subprocess.PIPE,
        text=True,
    ) as head:
        assert head.stdout is not None
        assert any("Ray runtime started" in line for line in head.stdout)
        yield f"ray://127.0.0.1:{client}"
        head.terminate()
        head.stdout.read()
        head.wait(PATIENCE)


def train(http: str, name: str, steps: range) -> dict[str, torch.Tensor]:
    with Client(http) as client:
        session = client.session(name) if steps.start else client.create_session("tiny", name)
        for step in steps:
            batch = tiny.batch(1 + step, 1.0)
            session.step(batch["inputs"], batch["targets"])
        assert session.version == steps.stop
        return session.pull()


@pytest.mark.campaign
def test_its_workers_compute_what_one_process_does_and_are_replaced(
    address: str, tmp_path: Path
) -> None:
    arguments = ["--model", tiny.REFERENCE, "--data-dir", str(tmp_path), "--log-level", "error"]
    cluster = ["--executor", "ray", "--ray-address", address, "--workers-per-session", "2"]
    with serving(
        *arguments, *cluster, "--cpus-per-worker", "0.5", RAY_AUTH_MODE="disabled"
    ) as server:
        train(server.address, "a", range(3))
        workers = [p for p in psutil.process_iter() if p.name().startswith("ray::_Actor")]
        assert len(workers) == 2
        workers[0].kill()
        found = train(server.address, "a", range(3, 6))
    with serving("--model", tiny.REFERENCE, "--log-level", "error") as server:
        expected = train(server.address, "a", range(6))
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, rtol=1e-5, atol=1e-6)
