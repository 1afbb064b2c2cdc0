"""Where a server would listen."""

import resource
import socket
import statistics
import threading
import time
from collections.abc import Iterator

from ..server.run import CannotListen, listen
from .check import Check

_FEW = 4096
_TRIPS = 51
_SLOW = 0.001


def network(host: str, port: int) -> Iterator[Check]:
    """Yield limits, the port, and how long a byte takes to oneself and back."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    if most < _FEW:
        advice = (
            f"raise the hard limit (ulimit -Hn, LimitNOFILE=): each connection takes one of {most}"
        )
        yield Check("open files", str(most), "warning", advice)
    else:
        yield Check("open files", str(most))
    yield _port(host, port)
    trip = _round_trip()
    found = f"{1e6 * trip:.0f} us, median of {_TRIPS} round trips"
    if trip > _SLOW:
        yield Check("loopback", found, "warning", "the machine is busy: every call waits as long")
    else:
        yield Check("loopback", found)


def _port(host: str, port: int) -> Check:
    try:
        listen(host, port, insecure=True).close()
    except CannotListen as error:
        advice = (
            "if that is a curvserve, ask it: curvserve doctor --url; else choose another --port"
        )
        return Check("port", str(error), "warning", advice)
    return Check("port", f"{host}:{port} is free")


def _round_trip() -> float:
    times = []
    with socket.create_server(("127.0.0.1", 0)) as listener:
        echo = threading.Thread(target=_echo, args=[listener])
        echo.start()
        with socket.create_connection(listener.getsockname()) as caller:
            caller.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            for _ in range(_TRIPS):
                began = time.perf_counter()
                caller.sendall(b".")
                caller.recv(1)
                times.append(time.perf_counter() - began)
        echo.join()
    return statistics.median(times)


def _echo(listener: socket.socket) -> None:
    connection, _ = listener.accept()
    with connection:
        while byte := connection.recv(1):
            connection.sendall(byte)
