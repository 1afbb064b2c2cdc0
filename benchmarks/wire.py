"""Time the wire: parameters down and a batch up, by this client, by httpx's transport, raw.

    python -m benchmarks.wire [--rounds 50]

A server process of its own; all contestants in turns, the order reversed every other round; medians
in milliseconds. Every contestant's bytes are compared with the session's parameters first.
"""

import argparse
import re
import resource
import socket
import statistics
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

import httpx
import torch
from curvserve_client import RemoteSession, connect
from curvserve_client.sockets import SocketTransport
from tqdm import tqdm

from benchmarks.wide import PIXELS
from tests.server.process import serving

SAMPLES = 64
WIDE = "benchmarks.wide:model"
MODELS = {"mnist_cnn": "1.7 MB", "wide": "94 MB"}


class Raw:
    """A thread that sends as many bytes as it is asked for: the floor."""

    def __init__(self, size: int) -> None:
        """Listen, and connect."""
        self._body = bytes(size)
        self._into = bytearray(size)
        with socket.create_server(("127.0.0.1", 0)) as listener:
            self._here = socket.create_connection(listener.getsockname())
            self._there = listener.accept()[0]
        threading.Thread(target=self._serve, daemon=True).start()

    def fetch(self) -> None:
        """Receive the bytes into memory that is used again."""
        self._here.sendall(b"?")
        view = memoryview(self._into)
        while view:
            view = view[self._here.recv_into(view) :]

    def close(self) -> None:
        """End both sides."""
        self._here.close()

    def _serve(self) -> None:
        while self._there.recv(1):
            self._there.sendall(self._body)
        self._there.close()


def measure(contestants: dict[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """Return each contestant's median milliseconds."""
    times: dict[str, list[float]] = {name: [] for name in contestants}
    for number in tqdm(range(-3, rounds), leave=False, disable=None):
        names = list(contestants) if number % 2 else list(reversed(contestants))
        for name in names:
            began = time.perf_counter()
            contestants[name]()
            if number >= 0:
                times[name].append(1000 * (time.perf_counter() - began))
    return {name: statistics.median(values) for name, values in times.items()}


@contextmanager
def sessions(address: str, model: str) -> Iterator[dict[str, RemoteSession]]:
    """The session of a model, by each transport."""
    with ExitStack() as stack:
        plain = stack.enter_context(httpx.Client())
        yield {
            "this client": stack.enter_context(connect(address, model=model)),
            "httpx's transport": connect(address, model=model, http=plain),
        }


def down(address: str, model: str, rounds: int) -> None:
    """Print how long a session's parameters take, and what the server spends on them."""
    with sessions(address, model) as found:
        pulled = {name: session.pull() for name, session in found.items()}
        first = pulled["this client"]
        for tensors in pulled.values():
            assert all(torch.equal(tensors[name], first[name]) for name in first)
        raw = Raw(sum(t.numel() * t.element_size() for t in first.values()))
        del pulled, first
        contestants: dict[str, Callable[[], object]] = {n: s.pull for n, s in found.items()}
        medians = measure({**contestants, "a raw socket": raw.fetch}, rounds)
        raw.close()
    floor = medians["a raw socket"]
    for name, value in medians.items():
        print(f"| {MODELS[model]} down | {name} | {value:.2f} | {value / floor:.2f} |")


def overhead(address: str, rounds: int) -> None:
    """Print what a call with a batch of 200 KB takes beside its computation."""
    computed: list[float] = []

    def note(response: httpx.Response) -> None:
        timing = response.headers.get("server-timing", "")
        found = re.search(r"compute;dur=([0-9.]+)", timing)
        computed.append(float(found[1]) if found else 0.0)

    batch = (torch.randn(SAMPLES, 1, 28, 28), torch.zeros(SAMPLES, 1))
    assert batch[0].numel() == SAMPLES * PIXELS
    for name, transport in (
        ("this client", SocketTransport()),
        ("httpx's transport", httpx.HTTPTransport()),
    ):
        hooks = {"response": [note]}
        with httpx.Client(transport=transport, event_hooks=hooks) as http:
            session = connect(address, model="wide", http=http)
            times = []
            for number in range(-5, rounds):
                began = time.perf_counter()
                session.evaluate(*batch)
                if number >= 0:
                    times.append(1000 * (time.perf_counter() - began) - computed[-1])
        print(f"| 200 KB up, without the computation | {name} | {statistics.median(times):.2f} | |")


def main() -> None:
    """Print one table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=50)
    arguments = parser.parse_args()
    print("| what | by | ms | over a raw socket |")
    print("|---|---|---|---|")
    with serving("--model", "mnist_cnn", "--model", WIDE, "--log-level", "warning") as server:
        for model in MODELS:
            down(server.address, model, arguments.rounds)
        overhead(server.address, 4 * arguments.rounds)
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    print(f"\nthe server used {used.ru_utime + used.ru_stime:.1f} s of CPU in all")


if __name__ == "__main__":
    main()
