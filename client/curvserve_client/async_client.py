"""A server, for programs with an event loop."""

from types import TracebackType
from typing import Self

import httpx

from . import protocol
from .async_session import AsyncRemoteSession
from .client import TIMEOUT, described, named, of_model
from .rules import Rule
from .transport import AsyncTransport
from .types import ModelSpec, SessionInfo


async def connect_async(
    url: str,
    *,
    model: str | None = None,
    session: str | None = None,
    timeout: float = TIMEOUT,
    http: httpx.AsyncClient | None = None,
    api_key: str | None = None,
    run: str | None = None,
    shared: bool = False,
) -> AsyncRemoteSession:
    """Return a session that a server has already; see `connect`."""
    name = named(model, session)
    transport = AsyncTransport(url, timeout, http, api_key)
    try:
        info = of_model(await transport.send(protocol.get_session(name)), model)
    except BaseException:
        await transport.close()
        raise
    return AsyncRemoteSession(transport, info, owner=True, run=run, shared=shared)


class AsyncClient:
    """A server, for listing its models and making sessions; see `Client`.

    Example:
        >>> async with AsyncClient("http://gpu-host:8000") as client:
        ...     session = await client.create_session("mnist_cnn", seed=1)
    """

    def __init__(
        self,
        url: str,
        *,
        timeout: float = TIMEOUT,
        http: httpx.AsyncClient | None = None,
        api_key: str | None = None,
    ) -> None:
        """Reach a server; nothing is sent yet. See `Client`."""
        self._transport = AsyncTransport(url, timeout, http, api_key)

    async def models(self) -> list[ModelSpec]:
        """Return the specification of every model that is served."""
        return await self._transport.send(protocol.list_models())

    async def model(self, name: str) -> ModelSpec:
        """Return one model's specification."""
        return await self._transport.send(protocol.get_model(name))

    async def sessions(self) -> list[SessionInfo]:
        """Return every session as it is now."""
        return await self._transport.send(protocol.list_sessions())

    async def create_session(
        self,
        model: str,
        name: str | None = None,
        *,
        seed: int | None = None,
        rule: Rule | None = None,
        from_checkpoint: str | None = None,
        run: str | None = None,
        shared: bool = False,
    ) -> AsyncRemoteSession:
        """Make a new session; see `Client.create_session`."""
        request = protocol.create_session(model, name, seed, described(rule), from_checkpoint)
        info = await self._transport.send(request)
        return AsyncRemoteSession(self._transport, info, run=run, shared=shared)

    async def session(
        self, name: str, *, run: str | None = None, shared: bool = False
    ) -> AsyncRemoteSession:
        """Return a session that is there already."""
        info = await self._transport.send(protocol.get_session(name))
        return AsyncRemoteSession(self._transport, info, run=run, shared=shared)

    async def delete_session(self, name: str) -> None:
        """End a session; its parameters are gone."""
        await self._transport.send(protocol.delete_session(name))

    async def close(self) -> None:
        """Close the connection, unless it is the caller's own."""
        await self._transport.close()

    async def __aenter__(self) -> Self:
        """Return the client itself."""
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Close the connection."""
        await self.close()

    def __repr__(self) -> str:
        """Say which server it is."""
        return f"AsyncClient({self._transport.link.address!r})"
