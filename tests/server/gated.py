"""A server whose computations stop half-way, for as long as a test likes."""

import socket
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass

import httpx
import torch

from tests.server.api import SessionApi, body
from tests.server.gate import PORT
from tests.server.process import PATIENCE, Server, serving

BATCH = body({"inputs": torch.ones(3, 2), "targets": torch.zeros(3, 1)})

Step = tuple[Future[httpx.Response], socket.socket]
"""A step's answer to come, and what keeps it from being computed until it is closed."""


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

    def begin_step(self, key: str = "") -> Step:
        """Send a step; return when it computes, which it does until the socket is closed."""
        answer = self.send_step(key)
        return answer, self.computing()

    def send_step(self, key: str = "") -> Future[httpx.Response]:
        """Send a step; it computes when its turn comes."""
        return self.pool.submit(self.session.send, "step", BATCH, key=key)

    def computing(self) -> socket.socket:
        """Wait until a computation is under way; it is until the socket is closed."""
        return self.gate.accept()[0]

    def let_through(self, computations: int) -> None:
        """Let so many computations come and end."""
        for _ in range(computations):
            self.computing().close()

    def metric(self, sample: str) -> float:
        """Return the value of a sample of the server's metrics; 0 where it is not told."""
        lines = self.session.http.get("/metrics").text.splitlines()
        found = [line for line in lines if line.startswith(f"{sample} ")]
        return float(found[0].split()[-1]) if found else 0.0

    @property
    def depth(self) -> float:
        """How many requests wait or are being computed."""
        return self.metric('curvserve_queue_depth{session="gated"}')


@contextmanager
def gated_server(*arguments: str, log: bool = False) -> Iterator[Gated]:
    """Run a server of the model `gated`, with a gate of its own."""
    with (
        ThreadPoolExecutor(max_workers=64) as pool,
        socket.create_server(("127.0.0.1", 0)) as gate,
        serving(
            *("--model", "tests.server.gate:model", *arguments),
            log=log,
            **{PORT: str(gate.getsockname()[1])},
        ) as server,
        httpx.Client(base_url=server.address, timeout=PATIENCE) as http,
    ):
        gate.settimeout(PATIENCE)
        yield Gated(server, SessionApi(http, "gated"), gate, pool)


def until(condition: Callable[[], bool]) -> None:
    """Ask again and again until a condition holds; fail where it never does."""
    end = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < end, "it never came to that"
