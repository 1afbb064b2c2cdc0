"""Bodies that end early, come too large, or do not say how long they are."""

import socket
from collections.abc import Iterator

import httpx
import pytest

from tests.server.api import SessionApi, body, code, digits

CONTENT = body(digits())


def connect(session: SessionApi) -> socket.socket:
    url = session.http.base_url
    assert url.port is not None
    return socket.create_connection((url.host, url.port), timeout=60)


def head(session: SessionApi, length: str) -> bytes:
    lines = [
        f"POST {session.path}/step HTTP/1.1",
        "host: curvserve",
        "content-type: application/vnd.safetensors",
        "idempotency-key: raw",
        "if-match: *",
        "connection: close",
        length,
    ]
    return "".join(f"{line}\r\n" for line in [*filter(None, lines), ""]).encode()


def answer(connection: socket.socket) -> httpx.Response:
    received = b"".join(iter(lambda: connection.recv(65536), b""))
    start, _, content = received.partition(b"\r\n\r\n")
    status, *lines = start.decode().split("\r\n")
    headers = [(name, value.strip()) for name, _, value in (line.partition(":") for line in lines)]
    return httpx.Response(int(status.split()[1]), headers=headers, content=content)


def test_a_body_that_ends_early_changes_nothing_and_frees_its_key(session: SessionApi) -> None:
    before = session.state()
    with connect(session) as connection:
        connection.sendall(head(session, f"content-length: {len(CONTENT)}") + CONTENT[:-100])
        connection.shutdown(socket.SHUT_WR)
        while connection.recv(65536):
            pass
    assert session.state() == before
    assert session.send("step", CONTENT, key="raw").json()["version"] == 1


def test_a_body_that_is_declared_too_large_is_refused_before_it_comes(session: SessionApi) -> None:
    before = session.state()
    with connect(session) as connection:
        connection.sendall(head(session, f"content-length: {10**15}"))
        refusal = answer(connection)
    assert (code(refusal), refusal.status_code) == ("body_too_large", 413)
    assert "at most" in refusal.json()["expected"]
    assert session.state() == before


def test_a_body_of_unknown_length_is_refused_where_it_grows_too_large(session: SessionApi) -> None:
    before = session.state()

    def endless() -> Iterator[bytes]:
        for _ in range(64):
            yield bytes(1024 * 1024)

    refusal = session.send("step", endless())
    assert (code(refusal), refusal.status_code) == ("body_too_large", 413)
    assert session.state() == before


def test_a_body_may_come_in_chunks_of_unknown_number(session: SessionApi) -> None:
    pieces = (CONTENT[start : start + 1000] for start in range(0, len(CONTENT), 1000))
    assert session.send("step", pieces).json()["version"] == 1


def test_a_body_without_a_length_is_refused(session: SessionApi) -> None:
    with connect(session) as connection:
        connection.sendall(head(session, ""))
        refusal = answer(connection)
    assert (code(refusal), refusal.status_code) == ("length_required", 411)


def test_the_largest_legal_batch_is_let_in(session: SessionApi) -> None:
    batch = {name: tensor.repeat_interleave(512, 0) for name, tensor in digits().items()}
    assert session.send("evaluate", body(batch)).json()["samples"] == 4096


@pytest.mark.parametrize("length", ["content-length: -1", "content-length: 1e3"])
def test_a_length_that_is_no_number_is_refused_by_the_parser(
    session: SessionApi, length: str
) -> None:
    with connect(session) as connection:
        connection.sendall(head(session, length))
        assert connection.recv(12) == b"HTTP/1.1 400"


def test_a_document_that_is_no_batch_has_a_small_cap(http: httpx.Client) -> None:
    refusal = http.post("/v1/sessions", json={"model": "mnist_cnn", "name": "x" * 70_000})
    assert code(refusal) == "body_too_large"
