"""Bytes on a socket, for what no HTTP client would send."""

import socket
from http.client import HTTPResponse, RemoteDisconnected
from urllib.parse import urlsplit

import httpx

PATIENCE = 60.0


def connect(url: str) -> socket.socket:
    """Connect to a server; nothing on the connection waits for ever."""
    address = urlsplit(url)
    return socket.create_connection((address.hostname, address.port), timeout=PATIENCE)


def request(method: str, path: str, *headers: str, body: bytes = b"") -> bytes:
    """Return a whole request; its length is declared where there is a body."""
    length = [f"content-length: {len(body)}"] if body else []
    lines = [f"{method} {path} HTTP/1.1", "host: curvserve", *headers, *length, "", ""]
    return "\r\n".join(lines).encode("latin-1") + body


def read_answer(connection: socket.socket, *, to_head: bool = False) -> httpx.Response | None:
    """Read one answer; None where the server closes the connection without one.

    The answer to a HEAD has no body, whatever length it says.
    """
    answer = HTTPResponse(connection, method="HEAD" if to_head else None)
    try:
        answer.begin()
    except (RemoteDisconnected, ConnectionResetError):  # reset where it had not read everything
        return None
    return httpx.Response(answer.status, headers=answer.getheaders(), content=answer.read())
