"""Time the wire: tensors down and a batch of 200 KB up, beside a bare socket and uvicorn alone.

    python -m benchmarks.wire [--rounds 50]

Servers and floors are processes of their own; all contestants of a table take turns, the order
reversed every other round; medians. Every contestant's tensors are compared with the session's
first. A turn is several calls, as a loop makes them: one alone finds the caches of the others.
Beside the computation: the time of a call less the phase `compute` of its Server-Timing, which the
compute thread measures around the job alone (decoding, queueing, handing over, journalling and
answering are left in). Server CPU is read from /proc, of all its threads. Milliseconds.
"""

import argparse
import re
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import torch
from curvserve_client import RemoteSession, connect
from tqdm import tqdm

from benchmarks.floors import REQUEST, fill
from benchmarks.wide import PIXELS
from tests.server.process import ROOT, serving

SAMPLES = 64
MODELS = ("mnist_cnn", "benchmarks.wide:model", "benchmarks.wide:small")
BATCH = torch.randn(SAMPLES, 1, 28, 28), torch.zeros(SAMPLES, 1)
UP = 4 * SAMPLES * (PIXELS + 1) + 200  # the batch, and its header
ANSWER = 400  # bytes of a head and a small document


@dataclass
class Contestant:
    """Somebody who makes a call.

    Attributes:
        call: makes it.
        process: whose CPU time is spent on the other side.
        phases: the newest answer's Server-Timing, milliseconds.
        times: of each call, and beside its computation, milliseconds.
        used: the other side's CPU time in all, milliseconds.
    """

    call: Callable[[], object]
    process: int
    phases: dict[str, float] = field(default_factory=dict)
    times: list[float] = field(default_factory=list)
    beside: list[float] = field(default_factory=list)
    used: float = 0.0

    def measure(self, calls: int) -> None:
        """Make the call several times."""
        used = cpu(self.process)
        for _ in range(calls):
            began = time.perf_counter()
            self.call()
            taken = 1000 * (time.perf_counter() - began)
            self.times.append(taken)
            self.beside.append(taken - self.phases.get("compute", 0.0))
        self.used += cpu(self.process) - used

    def row(self, floor: "Contestant") -> str:
        """Return median, the same over a floor's, median beside the computation, server CPU."""
        own, least = statistics.median(self.times), statistics.median(floor.times)
        cells = (own, own / least, statistics.median(self.beside), self.used / len(self.times))
        return " | ".join(f"{cell:.2f}" for cell in cells)


class Noting:
    """An HTTP client whose answers' Server-Timing is noted."""

    def __init__(self, http: httpx.Client, phases: dict[str, float]) -> None:
        """Look over a client's shoulder."""
        self._http = http
        self._phases = phases

    @contextmanager
    def stream(self, *args: object, **kwargs: object) -> Iterator[httpx.Response]:
        """See `httpx.Client.stream`."""
        with self._http.stream(*args, **kwargs) as response:  # type: ignore[arg-type]  # as they came
            found = re.findall(r"(\w+);dur=([0-9.]+)", response.headers.get("server-timing", ""))
            self._phases.update({name: float(number) for name, number in found})
            yield response

    def close(self) -> None:
        """See `httpx.Client.close`."""
        self._http.close()


class Floors:
    """The bare socket and uvicorn, each asked over one connection of its own."""

    def __init__(self, stack: ExitStack) -> None:
        """Start them, until the stack is closed."""
        command = [sys.executable, "-m", "benchmarks.floors"]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT)
        stack.callback(process.wait)
        stack.callback(process.terminate)
        assert process.stdout is not None
        ports = map(int, process.stdout.readline().split())
        self._process = process.pid
        self._bare, self._uvicorn = (socket.create_connection(("127.0.0.1", p)) for p in ports)
        for connection in (self._bare, self._uvicorn):
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def contestants(self, up: int, down: int) -> dict[str, Contestant]:
        """Return both, who send and receive so many bytes."""
        body, into = bytes(up), memoryview(bytearray(down))
        head = f"POST /?{down} HTTP/1.1\r\nhost: floor\r\ncontent-length: {up}\r\n\r\n".encode()

        def bare() -> None:
            self._bare.sendall(REQUEST.pack(up, down))
            self._bare.sendall(body)
            fill(self._bare, into)

        def uvicorn() -> None:
            self._uvicorn.sendall(head)
            self._uvicorn.sendall(body)
            found = b""
            while b"\r\n\r\n" not in found:
                found += self._uvicorn.recv(1024)
            fill(self._uvicorn, into[len(found.partition(b"\r\n\r\n")[2]) :])

        return {
            "a bare socket": Contestant(bare, self._process),
            "uvicorn alone": Contestant(uvicorn, self._process),
        }


class Servers:
    """Servers of all models, and sessions on them."""

    def __init__(self, stack: ExitStack) -> None:
        """Start none yet.

        Args:
            stack: what ends with the program.
        """
        self._stack = stack
        self._folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        models = [argument for model in MODELS for argument in ("--model", model)]
        self._arguments = [*models, "--log-level", "warning"]
        self._plain = self._start()
        self._unix = self._start("--uds", str(self._folder / "socket"))
        self._durable = {
            level: self._start("--data-dir", str(self._folder / level), "--durability", level)
            for level in ("process", "full")
        }

    def down(self, model: str) -> dict[str, Contestant]:
        """Return who fetches a model's parameters, all found to get the same."""

        def pull(session: RemoteSession) -> Callable[[], object]:
            found = session.pull()
            first.update(found if not first else {})
            assert all(torch.equal(found[name], first[name]) for name in first)
            return session.pull

        first: dict[str, torch.Tensor] = {}
        return {name: self._contestant(*way, model, pull) for name, way in self._ways().items()}

    def evaluate(self) -> dict[str, Contestant]:
        """Return who asks for the loss of a batch."""

        def evaluate(session: RemoteSession) -> Callable[[], object]:
            return lambda: session.evaluate(*BATCH)

        return {
            name: self._contestant(*way, "small", evaluate) for name, way in self._ways().items()
        }

    def step(self) -> dict[str, Contestant]:
        """Return who has a step taken, by what it survives."""

        def step(session: RemoteSession) -> Callable[[], object]:
            return lambda: session.step(*BATCH)

        ways = {"in memory": self._plain, "unix, in memory": self._unix, **self._durable}
        return {
            name: self._contestant(server, None, "small", step) for name, server in ways.items()
        }

    def _ways(self) -> dict[str, tuple[tuple[str, int], httpx.Client | None]]:
        plain = self._stack.enter_context(httpx.Client())
        return {
            "this client": (self._plain, None),
            "this client, unix socket": (self._unix, None),
            "httpx's transport": (self._plain, plain),
        }

    def _contestant(
        self,
        server: tuple[str, int],
        http: httpx.Client | None,
        model: str,
        call: Callable[[RemoteSession], Callable[[], object]],
    ) -> Contestant:
        address, process = server
        session = self._stack.enter_context(connect(address, model=model, http=http))
        found = Contestant(call(session), process)
        transport = session._transport
        # in place of the client that it stands around: all that `Transport` asks for is `stream`
        transport._http = Noting(transport._http, found.phases)  # type: ignore[assignment, arg-type]  # in its place
        return found

    def _start(self, *arguments: str) -> tuple[str, int]:
        server = self._stack.enter_context(serving(*self._arguments, *arguments))
        return server.address, server.process.pid


def cpu(process: int) -> float:
    """Return the milliseconds that a process's threads have been computing."""
    tasks = Path(f"/proc/{process}/task").glob("*/schedstat")
    return sum(int(task.read_text().split()[0]) for task in tasks) / 1e6


def table(what: str, contestants: dict[str, Contestant], rounds: int, turn: int) -> None:
    """Have everybody take turns of so many calls, and print the rows."""
    for number in tqdm(range(-3, rounds), desc=what, leave=False, disable=None):
        names = list(contestants) if number % 2 else list(reversed(contestants))
        for name in names:
            if number < 0:
                contestants[name].call()
            else:
                contestants[name].measure(turn)
    floor = contestants["a bare socket"]
    for name, contestant in contestants.items():
        print(f"| {what} | {name} | {contestant.row(floor)} |", flush=True)


def main() -> None:
    """Print one table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=50)
    rounds = parser.parse_args().rounds
    torch.set_num_threads(1)
    with ExitStack() as stack:
        floors, servers = Floors(stack), Servers(stack)
        columns = ("what", "by", "ms", "over a bare socket", "beside the computation", "server CPU")
        print(f"| {' | '.join(columns)} |")
        print("|---|---|---|---|---|---|")
        for what, model, size in (
            ("3.4 MB down", "mnist_cnn", 3_450_000),
            ("94 MB down", "wide", 94_000_000),
        ):
            table(what, floors.contestants(0, size) | servers.down(model), rounds, 2)
        up = floors.contestants(UP, ANSWER)
        table("200 KB up, its loss back", up | servers.evaluate(), rounds, 8)
        up = floors.contestants(UP, ANSWER)
        table("200 KB up, a fused step", up | servers.step(), rounds, 8)


if __name__ == "__main__":
    main()
