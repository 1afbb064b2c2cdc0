"""A server process: the socket, the signals, and the one line that says where it listens."""

import ipaddress
import logging
import signal
import socket
from types import FrameType

import uvicorn
from fastapi import FastAPI

from .context import Context


class CannotListen(Exception):
    """The address cannot be listened on; the text says why, in one line."""


def listen(host: str, port: int, *, insecure: bool = False) -> socket.socket:
    """Return a socket that listens; who connects is answered once a server runs on it.

    Args:
        host: a name or an address.
        port: a port, or 0 for a free one.
        insecure: allow addresses that other machines can reach.

    Raises:
        CannotListen: no such host, an address that is not loopback, a port that is taken.
    """
    family, address = _resolve(host, port)
    if not insecure and not ipaddress.ip_address(address.partition("%")[0]).is_loopback:
        raise CannotListen(
            f"{host} can be reached from other machines, and nothing here asks who is calling; "
            "say --insecure if that is what you want"
        )
    # asyncio turns Nagle's algorithm off only where the protocol is named: without it, every
    # answer of two writes waits 40 ms for the caller's delayed acknowledgement
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((address, port))
        listener.listen()  # already here: of two servers that start at once, one is refused
    except OSError as error:
        listener.close()
        raise CannotListen(f"cannot listen on {host}:{port}: {error.strerror}") from error
    return listener


def address_of(listener: socket.socket) -> str:
    """Return a bound socket's address as a URL."""
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def serve(app: FastAPI, listener: socket.socket, announcement: str) -> None:
    """Serve until SIGTERM or SIGINT, let requests under way end, then exit with status 0.

    Args:
        app: what to serve.
        listener: the socket to serve on.
        announcement: printed once connections are accepted.
    """
    context = app.state.context
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(levelname)s %(message)s")
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, _exit)  # uvicorn raises the signal again when it has shut down
    config = uvicorn.Config(
        app,
        log_config=None,
        access_log=False,
        ws="none",
        server_header=False,
        timeout_graceful_shutdown=context.limits.shutdown_seconds,
    )
    _Server(config, context, announcement).run(sockets=[listener])


class _Server(uvicorn.Server):
    """Says where it listens, and that it stops before it does."""

    def __init__(self, config: uvicorn.Config, context: Context, announcement: str) -> None:
        super().__init__(config)
        self._context = context
        self._announcement = announcement

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        print(self._announcement, flush=True)  # noqa: T201  # what scripts and people wait for

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self._context.ready = False
        await super().shutdown(sockets)


def _resolve(host: str, port: int) -> tuple[socket.AddressFamily, str]:
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except OSError as error:
        raise CannotListen(f"no such host: {host}") from error
    return found[0][0], str(found[0][4][0])


def _exit(number: int, frame: FrameType | None) -> None:
    raise SystemExit(0)
