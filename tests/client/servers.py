"""A tiny TCP server that answers HTTP requests exactly as badly as a test wants."""

import contextlib
import json
import socket
import socketserver
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import parse_qsl, urlsplit


@dataclass
class Received:
    """A request as it came in."""

    method: str
    path: str
    query: dict[str, str]
    headers: dict[str, str]
    body: bytearray


@dataclass
class Peer:
    """The server's end of one connection."""

    connection: socket.socket
    closing: threading.Event
    requests: list[Received]

    def receive(self) -> Received | None:
        """Read one request; None at the end of the connection."""
        stream = self.connection.makefile("rb")
        start = stream.readline().decode()
        if not start:
            return None
        method, target, _ = start.split()
        headers = {}
        while line := stream.readline().decode().strip():
            name, _, value = line.partition(":")
            headers[name.lower()] = value.strip()
        body = bytearray(stream.read(int(headers.get("content-length", 0))))
        url = urlsplit(target)
        received = Received(method, url.path, dict(parse_qsl(url.query)), headers, body)
        self.requests.append(received)
        return received

    def send(self, *parts: bytes) -> None:
        """Send bytes; that the client is gone already is not this end's business."""
        with contextlib.suppress(ConnectionError):
            for part in parts:
                self.connection.sendall(part)


@dataclass
class Running:
    """A server that runs: its address, and what it was sent."""

    url: str
    requests: list[Received]


@contextlib.contextmanager
def serving(talk: Callable[[Peer], None]) -> Iterator[Running]:
    """Serve each connection with `talk` until the block ends."""
    closing = threading.Event()
    requests: list[Received] = []

    class Handler(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            talk(Peer(self.request, closing, requests))

    class Server(socketserver.ThreadingTCPServer):
        allow_reuse_address = True

    with Server(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield Running(f"http://127.0.0.1:{server.server_address[1]}", requests)
        finally:
            closing.set()
            server.shutdown()
            thread.join()


def answering(*answers: bytes) -> contextlib.AbstractContextManager[Running]:
    """Serve the same answer to every request, then close the connection."""

    def talk(peer: Peer) -> None:
        if peer.receive() is not None:
            peer.send(*answers)

    return serving(talk)


def http(
    status: int, media_type: str, body: bytes, headers: Mapping[str, str] | None = None
) -> bytes:
    """An HTTP answer in bytes."""
    lines = {
        "Content-Type": media_type,
        "Content-Length": str(len(body)),
        "Connection": "close",
    } | dict(headers or {})
    head = "".join(f"{name}: {value}\r\n" for name, value in lines.items())
    return f"HTTP/1.1 {status} Words\r\n{head}\r\n".encode() + body


def http_json(document: Any, status: int = 200, media_type: str = "application/json") -> bytes:
    """An HTTP answer in JSON."""
    return http(status, media_type, json.dumps(document).encode())


def closed_port() -> int:
    """A port that nothing listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
