"""What the server's side of a connection writes, byte for byte."""

from typing import Any

import h11
import pytest

from curvserve.server.protocol import _Connection

ASKED = h11.Request(method="GET", target="/", headers=[("host", "curvserve")])


def asked() -> _Connection:
    connection = _Connection(h11.SERVER)
    connection.receive_data(h11.Connection(h11.CLIENT).send(ASKED))
    while connection.next_event() is not h11.NEED_DATA and connection.their_state is not h11.DONE:
        pass
    return connection


def head(*headers: tuple[str, str]) -> h11.Response:
    return h11.Response(status_code=200, reason=b"OK", headers=list(headers))


def test_a_head_goes_out_with_what_follows_it() -> None:
    connection = asked()
    assert connection.send(head(("content-length", "5"))) == b""
    assert (
        connection.send(h11.Data(data=b"ab")) == b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nab"
    )
    assert connection.send(h11.Data(data=b"cde")) == b"cde"
    assert connection.send(h11.EndOfMessage()) == b""


@pytest.mark.parametrize("end", [h11.Data(data=b""), h11.EndOfMessage()], ids=["data", "end"])
def test_a_head_without_a_body_is_not_held_back(end: Any) -> None:
    connection = asked()
    connection.send(head(("content-length", "0")))
    assert connection.send(end) == b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n"


def test_a_stream_of_unknown_length_begins_at_once() -> None:
    assert b"transfer-encoding: chunked" in (asked().send(head()) or b"").lower()


def test_a_body_is_not_copied() -> None:
    connection, body = asked(), memoryview(bytearray(1000))
    connection.send(head(("content-length", "1001")))
    connection.send(h11.Data(data=b"x"))
    assert connection.send(h11.Data(data=body)) is body  # type: ignore[arg-type, comparison-overlap]
