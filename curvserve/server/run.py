"""A server process: the socket, the signals, and the one line that says where it listens."""

import asyncio
import gc
import ipaddress
import logging
import os
import resource
import signal
import socket
import ssl
from pathlib import Path
from types import FrameType

import torch
import uvicorn
from fastapi import FastAPI

from ..api_keys import KeyFileError
from .context import Context
from .protocol import protocol_class

_LOG = logging.getLogger("curvserve.server")


LAST_ANSWERS = 5
"""Seconds beside the work's own in which its callers are answered."""


class CannotListen(Exception):
    """The address cannot be listened on; the text says why, in one line."""


def listen(host: str, port: int, *, insecure: bool = False) -> socket.socket:
    """Return a socket that listens; who connects is answered once a server runs on it.

    Args:
        host: a name or an address.
        port: a port, or 0 for a free one.
        insecure: allow addresses that other machines can reach; API keys allow them too.

    Raises:
        CannotListen: no such host, an address that is not loopback, a port that is taken.
    """
    family, address = _resolve(host, port)
    if not insecure and not is_loopback(address):
        raise CannotListen(
            f"{host} can be reached from other machines, and nothing here asks who is calling; "
            "give --api-keys FILE, or say --insecure if that is what you want"
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


def listen_at(path: Path) -> socket.socket:
    """Return a Unix socket that listens; only its owner can connect.

    Args:
        path: where it is to be; one that a dead server left behind is replaced.

    Raises:
        CannotListen: a server listens there already, something else is there, or no socket can be.
    """
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        if path.is_socket() and not _answers(path):
            path.unlink()
        before = os.umask(0o177)  # from the first moment on
        try:
            listener.bind(str(path))
        finally:
            os.umask(before)
        listener.listen()
    except OSError as error:
        listener.close()
        raise CannotListen(f"cannot listen on unix:{path}: {error.strerror or error}") from error
    return listener


def _answers(path: Path) -> bool:
    """Tell whether somebody listens at a Unix socket."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        return probe.connect_ex(str(path)) == 0


def is_loopback(address: str) -> bool:
    """Tell whether only this machine can call an address."""
    return ipaddress.ip_address(address.partition("%")[0]).is_loopback


def address_of(listener: socket.socket, *, tls: bool = False) -> str:
    """Return a bound socket's address as a URL."""
    if listener.family == socket.AF_UNIX:
        return f"unix:{listener.getsockname()}"
    host, port = listener.getsockname()[:2]
    scheme = "https" if tls else "http"
    return f"{scheme}://[{host}]:{port}" if ":" in host else f"{scheme}://{host}:{port}"


def serve(
    app: FastAPI, listener: socket.socket, announcement: str, tls: ssl.SSLContext | None = None
) -> None:
    """Serve until SIGTERM or SIGINT, let requests under way end, then exit with status 0.

    SIGHUP has the API keys read again.

    Args:
        app: what to serve.
        listener: the socket to serve on.
        announcement: printed once connections are accepted.
        tls: what to speak TLS with; plain HTTP without.
    """
    context = app.state.context
    _warn(context, listener, tls)
    # of every thread but those that compute, which have begun: once OpenMP has more workers than
    # there are cores, all of them sleep whenever they wait, at each of a step's hundred operations
    torch.set_num_threads(1)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, _exit)  # uvicorn raises the signal again when it has shut down
    config = uvicorn.Config(
        app,
        log_config=None,
        access_log=False,
        http=protocol_class(context.limits.head_seconds, context.limits.stall_seconds),
        ws="none",
        server_header=False,
        ssl_context_factory=(lambda config, default: tls) if tls else None,
        timeout_graceful_shutdown=context.limits.shutdown_seconds + LAST_ANSWERS,
    )
    _allow_many_connections()
    server = _Server(config, context, announcement)
    try:
        server.run(sockets=[listener])
    finally:
        if context.hung:  # its thread would be waited for at the end of the interpreter
            _LOG.error("a computation did not end in time; what it comes to is not applied")
            logging.shutdown()
            os._exit(1)
    if not server.started:
        raise SystemExit(1)


def _allow_many_connections() -> None:
    """Raise the number of open files to what the system allows: slow callers hold connections."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


class _Server(uvicorn.Server):
    """Says where it listens, and that it stops before it does."""

    def __init__(self, config: uvicorn.Config, context: Context, announcement: str) -> None:
        super().__init__(config)
        self._context = context
        self._announcement = announcement

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.should_exit:
            return
        if self._context.keys is not None:
            asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, self._reload_keys)
        gc.freeze()  # a whole collection would else look at all of torch, for a sixth of a second
        print(self._announcement, flush=True)  # noqa: T201  # what scripts and people wait for

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        context = self._context
        context.ready = False
        await asyncio.sleep(context.limits.notice_seconds)
        context.bodies.close()
        context.sessions.drain()
        finishing = asyncio.create_task(context.sessions.finish(context.limits.shutdown_seconds))
        for each in sockets or []:
            if each.family == socket.AF_UNIX:
                os.unlink(each.getsockname())
        await super().shutdown(sockets)
        await finishing

    def _reload_keys(self) -> None:
        keys = self._context.keys
        assert keys is not None
        try:
            keys.reload()
        except KeyFileError as error:
            _LOG.error("the API keys stay as they were: %s", error)
        else:
            _LOG.info("read %d API keys from %s", len(keys.entries), keys.path)


def _warn(context: Context, listener: socket.socket, tls: ssl.SSLContext | None) -> None:
    if context.keys is None:
        return
    if context.keys.readable_by_others:
        _LOG.warning("every user of this machine can read %s", context.keys.path)
    if tls is None and not _is_local(listener):
        _LOG.warning("without --tls-cert and --tls-key the API keys travel in the clear")


def _is_local(listener: socket.socket) -> bool:
    return listener.family == socket.AF_UNIX or is_loopback(listener.getsockname()[0])


def _resolve(host: str, port: int) -> tuple[socket.AddressFamily, str]:
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except OSError as error:
        raise CannotListen(f"no such host: {host}") from error
    return found[0][0], str(found[0][4][0])


def _exit(number: int, frame: FrameType | None) -> None:
    raise SystemExit(0)
