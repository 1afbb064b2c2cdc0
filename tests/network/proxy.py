"""A proxy between clients and a server that does what bad networks do, as a seed says."""

import random
import re
import socket
import threading
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from socketserver import StreamRequestHandler, ThreadingTCPServer
from typing import Self

from tests.server.process import PATIENCE

_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)
_CONNECTION = re.compile(rb"\r\nconnection:[^\r]*", re.IGNORECASE)


class Proxy(ThreadingTCPServer):
    """Listens on loopback and carries each request over a connection of its own.

    Attributes:
        faults: how often each fault has happened.
        pairs: each request that was sent twice, and the two answers.
    """

    request_queue_size = 64

    def __init__(self, server: str, seed: int) -> None:
        """Listen.

        Args:
            server: the server's address, `http://host:port`.
            seed: of the faults.
        """
        super().__init__(("127.0.0.1", 0), _Handler)
        self.faults: Counter[str] = Counter()
        self.pairs: list[tuple[bytes, bytes, bytes]] = []
        host, _, port = server.removeprefix("http://").partition(":")
        self._server = (host, int(port))
        self._random = random.Random(seed)
        self._lock = threading.Lock()
        self._underway: list[bytes] = []
        self._thread = threading.Thread(target=self.serve_forever, args=(0.02,))

    @property
    def address(self) -> str:
        """Where it listens."""
        return f"http://127.0.0.1:{self.server_address[1]}"

    def __enter__(self) -> Self:
        """Begin."""
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        """End, once every request has been carried."""
        self.shutdown()
        self._thread.join()
        self.server_close()

    def draw(self) -> "Fault":
        """Return what happens to the next request; nothing to about every second one."""
        with self._lock:
            name = self._random.choice([*FAULTS, *["none"] * len(FAULTS)])
            self.faults[name] += 1
        return FAULTS.get(name, _none)

    def carry(self, request: bytes) -> bytes:
        """Return the server's answer."""
        with socket.create_connection(self._server, PATIENCE) as connection:
            connection.sendall(request)
            with connection.makefile("rb") as answer:
                return answer.read()

    def break_off(self, request: bytes) -> None:
        """Bring the server half of a request."""
        with socket.create_connection(self._server, PATIENCE) as connection:
            connection.sendall(request[: len(request) // 2])

    def delay(self, request: bytes) -> None:
        """Keep a request until it is drawn, at a later one, by `arrive`."""
        with self._lock:
            self._underway.append(request)

    def arrive(self) -> None:
        """Now and then bring the server a request that was kept; nobody waits for the answer."""
        with self._lock:
            if not self._underway or self._random.random() < 0.7:
                return
            late = self._underway.pop(self._random.randrange(len(self._underway)))
        self.carry(late)


class _Handler(StreamRequestHandler):
    server: Proxy

    def handle(self) -> None:
        """Carry one request; what becomes of it is drawn."""
        request = self._read()
        if request:
            self.server.arrive()
            answer = self.server.draw()(self.server, request)
            self.wfile.write(answer)

    def _read(self) -> bytes:
        head = b""
        while not head.endswith(b"\r\n\r\n"):
            line = self.rfile.readline()
            if not line:
                return b""
            head += line
        length = _LENGTH.search(head)
        body = self.rfile.read(int(length[1])) if length else b""
        return _CONNECTION.sub(b"\r\nConnection: close", head) + body


Fault = Callable[[Proxy, bytes], bytes]
"""Carries a request and returns what the caller gets of the answer; nothing where it hangs up."""


def _none(proxy: Proxy, request: bytes) -> bytes:
    return proxy.carry(request)


def _dropped_before(proxy: Proxy, request: bytes) -> bytes:
    return b""


def _broken_off(proxy: Proxy, request: bytes) -> bytes:
    proxy.break_off(request)
    return b""


def _dropped_after(proxy: Proxy, request: bytes) -> bytes:
    proxy.carry(request)
    return b""


def _cut(proxy: Proxy, request: bytes) -> bytes:
    answer = proxy.carry(request)
    return answer[: len(answer) - 10]


def _late(proxy: Proxy, request: bytes) -> bytes:
    """Hang up; the request comes to the server some time after its retry."""
    proxy.delay(request)
    return b""


def _twice(proxy: Proxy, request: bytes) -> bytes:
    first, second = proxy.carry(request), proxy.carry(request)
    proxy.pairs.append((request, first, second))
    return second


def _twice_at_once(proxy: Proxy, request: bytes) -> bytes:
    with ThreadPoolExecutor(2) as pool:
        first, second = pool.map(proxy.carry, [request, request])
    proxy.pairs.append((request, first, second))
    return first


FAULTS: dict[str, Fault] = {
    "dropped before it reached the server": _dropped_before,
    "half of it reached the server": _broken_off,
    "dropped after it reached the server": _dropped_after,
    "answer cut": _cut,
    "late, after its retry": _late,
    "sent twice, one after the other": _twice,
    "sent twice at once": _twice_at_once,
}
