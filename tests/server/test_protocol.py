"""The server's side of a connection, byte for byte."""

import re
from collections.abc import Callable, Iterator
from functools import partial
from socket import socket

import httpx
import pytest

from curvserve.server.protocol import HEAD_BYTES, REFUSED
from tests.server import tiny
from tests.server.process import serving
from tests.server.raw import connect, read_answer, request

CHUNKED = "transfer-encoding: chunked"
LIVEZ = request("GET", "/livez")


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    with serving("--model", tiny.REFERENCE, "--log-level", "error") as server:
        yield server.address


@pytest.fixture
def connection(address: str) -> Iterator[socket]:
    with connect(address) as found:
        yield found


def create(*headers: str, body: bytes = b"{}") -> bytes:
    return request("POST", "/v1/sessions", "content-type: application/json", *headers, body=body)


def refused(answer: httpx.Response | None, text: str = REFUSED) -> bool:
    assert answer is not None
    return (answer.status_code, answer.text, answer.headers["connection"]) == (400, text, "close")


@pytest.mark.parametrize(
    "sent",
    [
        b"GET /livez HTTP/1.1\r\n\r\n",
        b"GET /livez HTTP/1.1\r\nhost: a\r\nhost: a\r\n\r\n",
        b"GET /livez HTTP/1.0\r\nhost: a\r\nhost: b\r\n\r\n",
        b"GET /livez\r\n\r\n",
        b"GET /livez HTTP/0.9\r\nhost: a\r\n\r\n",
        b"GET /livez HTTP/1.2\r\nhost: a\r\n\r\n",
        b"GET /livez HTTP/2.0\r\nhost: a\r\n\r\n",
        create("transfer-encoding: gzip, chunked", body=b"") + b"0\r\n\r\n",
        create("transfer-encoding: gzip", CHUNKED, body=b"") + b"0\r\n\r\n",
        create("transfer-encoding: identity"),
        create(CHUNKED, CHUNKED, body=b"") + b"0\r\n\r\n",
        create(CHUNKED, body=b"").replace(b"HTTP/1.1", b"HTTP/1.0") + b"0\r\n\r\n",
        create(CHUNKED, "content-length: 0", body=b"") + b"0\r\n\r\n",
        b"GET /livez HTTP/1.1\nhost: a\n\n",
        b"GET /livez HTTP/1.1\r\nhost : a\r\n\r\n",
        b"\0\0\0\0\r\n\r\n",
        b"CONNECT example.org:443 HTTP/1.1\r\nhost: example.org:443\r\n\r\n",
    ],
)
def test_what_a_server_has_to_refuse_is_refused(connection: socket, sent: bytes) -> None:
    connection.sendall(sent)
    assert refused(read_answer(connection))
    assert connection.recv(1) == b""


def test_http_1_0_needs_no_host_and_is_answered_once(connection: socket) -> None:
    connection.sendall(b"GET /livez HTTP/1.0\r\n\r\n")
    answer = read_answer(connection)
    assert answer is not None and answer.status_code == 200
    assert connection.recv(1) == b""


@pytest.mark.parametrize(
    "beginning",
    [b"GET /", b"GET / HTTP/1.1\r\nx: ", b"GET / HTTP/1.1\r\n", b""],
    ids=["url", "field", "fields", "nothing"],
)
def test_a_head_without_end_is_refused(connection: socket, beginning: bytes) -> None:
    more = {b"GET / HTTP/1.1\r\n": b"name: value\r\n", b"": b"\r\n"}.get(beginning, b"a")
    piece = more * (HEAD_BYTES // 4 // len(more))
    try:
        connection.sendall(beginning or more)
        for _ in range(100):  # far more than it may keep; each piece is one that it has read
            connection.sendall(piece)
    except (BrokenPipeError, ConnectionResetError):
        return  # it hung up meanwhile
    answer = read_answer(connection)
    assert answer is None or refused(answer, f"The head has more than {HEAD_BYTES} bytes.")


def test_heads_of_one_connection_are_not_added_up(connection: socket) -> None:
    padded = request("GET", "/livez", "x-padding: " + "a" * (HEAD_BYTES // 3))
    half = len(padded) // 2
    for _ in range(8):
        connection.sendall(padded[:half])
        connection.sendall(padded[half:])
        answer = read_answer(connection)
        assert answer is not None and answer.status_code == 200


def test_requests_that_come_together_are_answered_in_turn(connection: socket) -> None:
    unknown = request("GET", "/nowhere", "x-padding: " + "a" * HEAD_BYTES)
    last = request("GET", "/livez", "connection: close")
    connection.sendall(LIVEZ + unknown + create() + last)
    received = b"".join(iter(partial(connection.recv, 65536), b""))
    assert re.findall(rb"HTTP/1.1 (\d+)", received) == [b"200", b"404", b"422", b"200"]


def test_a_trailer_is_no_part_of_the_head(connection: socket) -> None:
    body = b'{"model": "tiny", "name": "trailing"}'
    whole = f"{len(body):x}\r\n".encode() + body + b"\r\n0\r\n"
    sent = create(CHUNKED, body=b"") + whole
    connection.sendall(sent + b"x-request-id: from-the-trailer\r\n\r\n")
    answer = read_answer(connection)
    assert answer is not None and answer.status_code == 201
    assert answer.headers["x-request-id"] != "from-the-trailer"


def test_a_body_that_stops_making_sense_is_refused_and_changes_nothing(
    connection: socket, address: str
) -> None:
    connection.sendall(create(CHUNKED, body=b"") + b'9\r\n{"model":\r\nno number\r\n')
    assert refused(read_answer(connection))
    names = [each["name"] for each in httpx.get(f"{address}/v1/sessions").json()["sessions"]]
    assert not [name for name in names if name.startswith("tiny-")]


def test_what_is_no_request_ends_an_answer_that_has_begun(connection: socket) -> None:
    connection.sendall(request("GET", "/v1/events"))
    received = b""
    while b"\r\n\r\n" not in received:
        received += connection.recv(4096)
    connection.sendall(b"\0\0\0\0\r\n\r\n")
    for piece in iter(partial(connection.recv, 4096), b""):
        received += piece
    assert received.count(b"HTTP/1.1") == 1 and REFUSED.encode() not in received


@pytest.mark.parametrize("ask", [lambda: LIVEZ, create], ids=["get", "post"])
def test_a_connection_goes_on_after_an_answer(connection: socket, ask: Callable[[], bytes]) -> None:
    for _ in range(3):
        connection.sendall(ask())
        answer = read_answer(connection)
        assert answer is not None and "connection" not in answer.headers


H2C = (
    "connection: keep-alive, Upgrade, HTTP2-Settings",
    "upgrade: h2c",
    "http2-settings: AAMAAABk",
)
WEBSOCKET = ("connection: Upgrade", "upgrade: websocket", "sec-websocket-version: 13")
NAMED = b'{"model": "tiny", "name": "upgraded"}'


@pytest.mark.parametrize("wish", [H2C, WEBSOCKET], ids=["h2c", "websocket"])
@pytest.mark.parametrize("pieces", [1, 2, 7])
@pytest.mark.parametrize("in_chunks", [False, True])
def test_a_wish_for_another_protocol_is_not_heard_and_the_body_is(
    connection: socket, address: str, wish: tuple[str, ...], pieces: int, in_chunks: bool
) -> None:
    """Java's client has one in each first request that it sends, and curl with --http2."""
    if in_chunks:
        sent = create(*wish, CHUNKED, body=b"") + b"%x\r\n%b\r\n0\r\n\r\n" % (len(NAMED), NAMED)
    else:
        sent = create(*wish, body=NAMED)
    size = -(-len(sent) // pieces)
    for start in range(0, len(sent), size):
        connection.sendall(sent[start : start + size])
    answer = read_answer(connection)
    assert answer is not None and answer.status_code == 201, answer and answer.text
    assert httpx.delete(f"{address}/v1/sessions/upgraded").status_code == 204
    for ask in (request("GET", "/livez", *wish), LIVEZ):
        connection.sendall(ask)
        answer = read_answer(connection)
        assert answer is not None and answer.status_code == 200
