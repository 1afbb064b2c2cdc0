"""The client's own httpx transport: connections used again, bodies in place, errors as httpx's."""

import socket
import threading
from collections.abc import Iterator
from http.client import HTTPResponse

import httpx
import pytest
import torch
from curvserve_client import Client, protocol, wire
from curvserve_client.buffers import BufferPool
from curvserve_client.sockets import BUFFERS, SocketClient, SocketTransport, _Answer
from curvserve_client.transport import Transport

from .servers import Peer, answering, closed_port, http, http_json, serving

KEPT = {"Connection": "keep-alive"}
MODELS = http(200, "application/json", b'{"models": []}', KEPT)


@pytest.fixture
def client() -> Iterator[httpx.Client]:
    with httpx.Client(transport=SocketTransport(), timeout=20.0) as client:
        yield client


def test_a_connection_is_used_again(client: httpx.Client) -> None:
    connections: list[Peer] = []

    def talk(peer: Peer) -> None:
        connections.append(peer)
        while peer.receive() is not None:
            peer.send(MODELS)

    with serving(talk) as server:
        for _ in range(5):
            assert client.get(server.url).json() == {"models": []}
        client.close()
    assert len(connections) == 1 and len(server.requests) == 5


def test_a_connection_that_the_server_has_closed_is_not_used_again(client: httpx.Client) -> None:
    closed = threading.Semaphore(0)

    def talk(peer: Peer) -> None:
        peer.receive()
        peer.send(MODELS)  # says keep-alive, and then ends all the same
        peer.connection.close()
        closed.release()

    with serving(talk) as server:
        for _ in range(5):
            assert client.get(server.url).status_code == 200
            closed.acquire()


@pytest.mark.parametrize("status", [204, 304])
def test_an_answer_without_a_body_leaves_the_connection(client: httpx.Client, status: int) -> None:
    connections: list[Peer] = []
    answer = f'HTTP/1.1 {status} Words\r\nETag: "3"\r\n\r\n'.encode()

    def talk(peer: Peer) -> None:
        connections.append(peer)
        while peer.receive() is not None:
            peer.send(answer)

    with serving(talk) as server:
        for _ in range(3):
            found = client.get(server.url)
            assert (found.status_code, found.content, found.headers["etag"]) == (status, b"", '"3"')
        client.close()
    assert len(connections) == 1


def test_a_body_is_read_into_the_memory_that_was_given(client: httpx.Client) -> None:
    body = b"".join(wire.encode({"x": torch.arange(1_000_000)}))
    memory = bytearray(len(body))

    def take(content_type: str, length: int) -> memoryview | None:
        assert (content_type, length) == (wire.MEDIA_TYPE, len(body))
        return memoryview(memory)

    with (
        answering(http(200, wire.MEDIA_TYPE, body)) as server,
        client.stream("GET", server.url, extensions={BUFFERS: take}) as response,
    ):
        for piece in response.iter_raw():
            assert piece.obj is memory  # type: ignore[attr-defined]  # it is a memoryview
    assert bytes(memory) == body


def test_chunked_bodies_are_read(client: httpx.Client) -> None:
    answer = (
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
        b"5\r\nhello\r\n6\r\n world\r\n0\r\n\r\n"
    )
    with answering(answer) as server:
        assert client.get(server.url).text == "hello world"


def test_an_answer_before_the_body_was_taken_is_the_answer(client: httpx.Client) -> None:
    refusal = http_json({"code": "body_too_large"}, 413)

    def talk(peer: Peer) -> None:
        peer.connection.recv(1)
        peer.send(refusal)

    with serving(talk) as server:
        answered = client.post(server.url, content=iter([bytes(256)]))
    assert answered.status_code == 413


@pytest.mark.parametrize(
    "answer, error",
    [
        (b"", httpx.RemoteProtocolError),
        (b"SSH-2.0-OpenSSH\r\n", httpx.RemoteProtocolError),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhalf", httpx.RemoteProtocolError),
    ],
    ids=["nothing", "no http", "half"],
)
def test_what_breaks_is_told_as_httpx_tells_it(
    client: httpx.Client, answer: bytes, error: type[httpx.TransportError]
) -> None:
    with answering(answer) as server, pytest.raises(error):
        client.get(server.url)


HEADS = [
    "HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Type: text/plain\r\n",
    "HTTP/1.1 200\r\ncontent-length:5\r\n",
    "HTTP/1.1 200 OK\r\nContent-Length: 5\r\nConnection: Close\r\n",
    "HTTP/1.0 200 OK\r\nContent-Length: 5\r\n",
    "HTTP/1.0 200 OK\r\nContent-Length: 5\r\nConnection: keep-alive\r\n",
    "HTTP/1.1 200 OK\r\n",
    "HTTP/1.1 200 OK\nContent-Length: 5\n",
    "HTTP/1.1 204 No Content\r\n",
    "HTTP/1.1 304 Not Modified\r\nContent-Length: 5\r\n",
    "HTTP/1.1 200 OK\r\nTransfer-Encoding: Chunked\r\nContent-Length: 5\r\n",
    "HTTP/1.1 200 OK\r\nContent-Length: five\r\n",
    "HTTP/1.1 200 OK\r\nContent-Length: -5\r\n",
    "HTTP/1.1 100 Continue\r\nX-Other: a\r\n\r\nHTTP/1.1 503 Busy\r\nContent-Length: 0\r\n",
    "HTTP/1.1 200 OK\r\nServer-Timing: total;dur=1.0, a: b\r\nX-Empty:\r\nX-Latin: \xe9\r\n",
]


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("method", ["POST", "HEAD"])
def test_heads_are_read_as_by_the_standard_library(head: str, method: str) -> None:
    found = []
    for kind in (_Answer, HTTPResponse):
        here, there = socket.socketpair()
        with here, there:
            there.sendall(f"{head}\r\n".encode("latin-1"))
            answer = kind(here, method=method)
            answer.begin()
            lines = answer.lines if isinstance(answer, _Answer) else answer.getheaders()
            body = (answer.length, bool(answer.chunked), bool(answer.will_close))
            found.append((answer.status, answer.version, list(lines), *body))
            answer.close()
    assert found[0] == found[1]


@pytest.mark.parametrize(
    "head",
    [
        "HTTP/2 200 OK\r\n\r\n",
        "HTTP/1.1 2000 OK\r\n\r\n",
        "HTTP/1.1 OK\r\n\r\n",
        "HTTP/1.1 200 OK\r\nno colon\r\n\r\n",
        "HTTP/1.1 200 OK\r\nX-Folded: a\r\n  b\r\n\r\n",
        f"HTTP/1.1 200 OK\r\nX-Long: {'a' * 70_000}\r\n\r\n",
        "HTTP/1.1 200 OK\r\n" + "X-Many: a\r\n" * 101 + "\r\n",
        "HTTP/1.1 200 OK\r\nContent-Le",
    ],
    ids=["version", "status", "no status", "no colon", "folded", "long", "many", "cut"],
)
def test_what_is_no_head_is_told_as_httpx_tells_it(client: httpx.Client, head: str) -> None:
    with answering(head.encode()) as server, pytest.raises(httpx.RemoteProtocolError):
        client.get(server.url)


def test_nobody_listens(client: httpx.Client) -> None:
    with pytest.raises(httpx.ConnectError):
        client.get(f"http://127.0.0.1:{closed_port()}")


def test_a_server_that_does_not_answer_meets_the_timeout(client: httpx.Client) -> None:
    def silent(peer: Peer) -> None:
        peer.receive()
        peer.closing.wait()

    with serving(silent) as server, pytest.raises(httpx.ReadTimeout):
        client.get(server.url, timeout=0.2)


def test_a_password_in_the_url_is_sent() -> None:
    with answering(http_json({"models": []})) as server:
        with Client(server.url.replace("//", "//user:word@")) as client:
            assert client.models() == []
        assert server.requests[0].headers["authorization"] == "Basic dXNlcjp3b3Jk"


def test_a_call_says_that_its_connection_is_kept() -> None:
    with answering(http_json({"models": []})) as server:
        with Client(server.url) as client:
            client.models()
        assert server.requests[0].headers["connection"] == "keep-alive"


def test_a_line_break_in_a_header_is_not_sent() -> None:
    lines = {"X-Run": "a\r\nX-Other: b"}
    with answering(http_json({"models": []})) as server:
        client = SocketClient(SocketTransport())
        with pytest.raises(ValueError), client.stream("GET", server.url, headers=lines):
            pass
        client.close()
    assert not server.requests


def test_a_proxy_of_the_environment_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    with answering(http_json({"models": []})) as proxy:
        monkeypatch.setenv("HTTP_PROXY", proxy.url)
        monkeypatch.delenv("NO_PROXY", raising=False)
        with Client("http://gpu-host.invalid:8000") as client:
            assert client.models() == []
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        with answering(http_json({"models": []})) as direct, Client(direct.url) as client:
            assert client.models() == []
    assert [request.headers["host"] for request in proxy.requests] == ["gpu-host.invalid:8000"]
    assert len(direct.requests) == 1


def test_memory_is_used_again_once_nothing_looks_at_it() -> None:
    body = b"".join(wire.encode({"x": torch.arange(1_000_000)}, {"version": "0"}))
    made: list[int] = []

    class Counting(BufferPool):
        def _new(self, size: int) -> bytearray:
            made.append(size)
            return super()._new(size)

    def talk(peer: Peer) -> None:
        while peer.receive() is not None:
            peer.send(http(200, wire.MEDIA_TYPE, body, KEPT))

    with serving(talk) as server:
        transport = Transport(server.url, 20.0)
        transport.link._buffers = Counting()
        for _ in range(10):
            tensors, _ = transport.send(protocol.get_parameters("digits"))
            assert tensors["x"][-1] == 999_999
            del tensors
        transport.close()
    assert len(made) == 1
