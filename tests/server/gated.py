"""A server whose computations stop half-way, until a test lets them go on."""

import socket
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass

import httpx
import torch

from tests.server.api import SessionApi, body
from tests.server.gate import PORT
from tests.server.process import PATIENCE, Server, serving

MODEL = ("--model", "tests.server.gate:model")

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
def gated_server(*arguments: str) -> Iterator[Gated]:
    """Run a server with further arguments."""
    with (
        ThreadPoolExecutor() as pool,
        socket.create_server(("127.0.0.1", 0)) as gate,
        serving(*MODEL, *arguments, **{PORT: str(gate.getsockname()[1])}) as it,
        httpx.Client(base_url=it.address, timeout=PATIENCE) as http,
    ):
        gate.settimeout(PATIENCE)
        yield Gated(it, SessionApi(http, "gated"), gate, pool)
