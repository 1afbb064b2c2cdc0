"""A server on a Unix socket: for a trainer beside it."""

import asyncio
import gc
import socket
import stat
import subprocess
import sys
import warnings
from pathlib import Path

import httpx
import pytest
import torch
from curvserve_client import Client, Unreachable, connect, connect_async
from curvserve_client.transport import Transport

from tests.server.process import ROOT, serving
from tests.server.tiny import REFERENCE as MODEL

BATCH = (torch.ones(4, 3), torch.tensor([0, 1, 2, 0]))


def test_a_session_is_trained_through_a_socket_that_its_owner_alone_may_use(
    tmp_path: Path,
) -> None:
    path = tmp_path / "curvserve.sock"
    with serving("--model", MODEL, "--uds", str(path)) as server:
        assert server.address == f"unix:{path}"
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        with connect(server.address, model="tiny") as session:
            assert session.step(*BATCH).version == 1
            assert server.address in repr(session)

        async def main() -> int:
            async with await connect_async(server.address, model="tiny") as session:
                return (await session.step(*BATCH)).version

        assert asyncio.run(main()) == 2
        second = subprocess.run(
            [sys.executable, "-m", "curvserve", "serve", "--model", MODEL, "--uds", str(path)],
            capture_output=True,
            text=True,
            cwd=ROOT,
        )
        assert (second.returncode, second.stdout) == (1, "")
        assert f"cannot listen on unix:{path}: Address already in use" in second.stderr
    assert not path.exists()


def test_nobody_listens(tmp_path: Path) -> None:
    # httpcore 1.0 leaves the socket of a refused connection to the garbage collector
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        with Client(f"unix:{tmp_path}/curvserve.sock") as client, pytest.raises(Unreachable):
            client.models()
        gc.collect()


def test_what_a_dead_server_left_behind_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "curvserve.sock"
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    with (
        serving("--model", MODEL, "--uds", str(path)) as server,
        connect(server.address, model="tiny") as session,
    ):
        assert session.version == 0


def test_a_socket_and_a_client_of_ones_own_are_refused() -> None:
    with httpx.Client() as http, pytest.raises(ValueError, match="give no http with it"):
        Transport("unix:/run/curvserve.sock", 1.0, http)
