"""What the wire is measured against, in a process of its own: a bare socket, and uvicorn alone.

    python -m benchmarks.floors

It prints two ports: of a socket that reads as many bytes as it is told and sends as many as it is
asked for, and of uvicorn with an application that does the same.
"""

import socket
import struct
import threading

import uvicorn
from starlette.types import Receive, Scope, Send

REQUEST = struct.Struct("<QQ")
"""Bytes that come, and bytes to be sent."""

PIECE = 1024 * 1024
MOST = 128 * PIECE
BODY = memoryview(bytearray(b"\1" * MOST))  # written to, so that its pages are there


async def application(scope: Scope, receive: Receive, send: Send) -> None:
    """Read a body, and answer with as many bytes as the query says."""
    while (await receive()).get("more_body"):
        pass
    size = int(scope["query_string"])
    headers = [(b"content-length", str(size).encode())]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    for start in range(0, size, PIECE):
        piece = BODY[start : min(size, start + PIECE)]
        await send({"type": "http.response.body", "body": piece, "more_body": True})
    await send({"type": "http.response.body", "body": b"", "more_body": False})


def listener() -> socket.socket:
    """Return a socket that listens on a free port; what is accepted waits for nothing."""
    found = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    found.bind(("127.0.0.1", 0))
    found.listen()
    return found


def bare(listening: socket.socket) -> None:
    """Serve one connection after another."""
    into = memoryview(bytearray(MOST))
    while True:
        connection = listening.accept()[0]
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        while head := connection.recv(REQUEST.size, socket.MSG_WAITALL):
            up, down = REQUEST.unpack(head)
            fill(connection, into[:up])
            connection.sendall(BODY[:down])


def fill(connection: socket.socket, view: memoryview) -> None:
    """Receive as many bytes as a view has."""
    while view:
        view = view[connection.recv_into(view) :]


def main() -> None:
    """Serve until interrupted."""
    sockets = listener(), listener()
    threading.Thread(target=bare, args=(sockets[0],), daemon=True).start()
    print(*(each.getsockname()[1] for each in sockets), flush=True)
    config = uvicorn.Config(
        application, lifespan="off", log_level="warning", access_log=False, timeout_keep_alive=600
    )
    uvicorn.Server(config).run(sockets=[sockets[1]])


if __name__ == "__main__":
    main()
