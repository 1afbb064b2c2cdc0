"""Sends the protocol's requests over httpx, to one server, within a deadline, and again if need be.

`Transport` blocks, `AsyncTransport` awaits; whatever does neither is in `link`.
"""

import asyncio
import time
import urllib.request
from typing import TypeVar

import httpx

from .errors import CurvserveError
from .link import LIMITS, Attempts, Link
from .messages import Answer, Request
from .sockets import SocketClient, SocketTransport

T = TypeVar("T")


class Transport:
    """One server, reached through one httpx client.

    Attributes:
        link: where the server is, and what was seen of it.
    """

    def __init__(
        self,
        url: str,
        timeout: float,
        http: httpx.Client | None = None,
        api_key: str | None = None,
    ) -> None:
        """Reach a server; nothing is sent yet.

        Args:
            url: `http://host:port` or `https://...`, with a path where a proxy needs one; or
                `unix:/path`.
            timeout: seconds that one call may take in all.
            http: a client of the caller's own (TLS, authentication, proxies); it stays open.
            api_key: what the server knows the caller by; None for that of the environment, unless
                `http` has an authentication of its own.

        Raises:
            ValueError: the URL is not http or https, the timeout is not a finite number > 0, or the
                key holds what no key has.
        """
        self.link = Link(url, timeout, http, api_key)
        self._owned = http is None
        self._http = http or _client(self.link)

    def send(self, request: Request[T]) -> T:
        """Send a request, again where `retries` says so, and return what its answer holds.

        Raises:
            ProblemError: the server refused; one class per code.
            ConnectionFailed: nothing listens there, or the connection broke.
            DeadlinePassed: `timeout` passed.
            ProtocolError: the answer is not what the contract says.
        """
        attempts = Attempts(self.link, request)
        with attempts.progress.told():
            while True:
                try:
                    with attempts.told():
                        return request.read(self._exchange(attempts))
                except CurvserveError as error:
                    time.sleep(attempts.pause(error))

    def close(self) -> None:
        """Close the connections, unless the client was given by the caller."""
        if self._owned:
            self._http.close()

    def _exchange(self, attempts: Attempts) -> Answer:
        with self._http.stream(**self.link.call(attempts)) as response:
            receiver = self.link.receiver(response, attempts)
            for chunk in response.iter_raw():
                receiver.take(chunk)
            return receiver.answer()


class AsyncTransport:
    """One server, reached through one asynchronous httpx client; see `Transport`."""

    def __init__(
        self,
        url: str,
        timeout: float,
        http: httpx.AsyncClient | None = None,
        api_key: str | None = None,
    ) -> None:
        """Reach a server; see `Transport`."""
        self.link = Link(url, timeout, http, api_key)
        self._owned = http is None
        self._http = http or httpx.AsyncClient(transport=_awaited(self.link), limits=LIMITS)

    async def send(self, request: Request[T]) -> T:
        """Send a request and return what its answer holds; see `Transport.send`."""
        attempts = Attempts(self.link, request)
        with attempts.progress.told():
            while True:
                try:
                    with attempts.told():
                        return request.read(await self._exchange(attempts))
                except CurvserveError as error:
                    await asyncio.sleep(attempts.pause(error))

    async def close(self) -> None:
        """Close the connections, unless the client was given by the caller."""
        if self._owned:
            await self._http.aclose()

    async def _exchange(self, attempts: Attempts) -> Answer:
        call = self.link.call(attempts, awaiting=True)
        async with self._http.stream(**call) as response:
            receiver = self.link.receiver(response, attempts)
            async for chunk in response.aiter_raw():
                receiver.take(chunk)
            return receiver.answer()


def _client(link: Link) -> httpx.Client | SocketClient:
    """Return what reaches the server: httpx where that takes a proxy, a password or a query."""
    if link.uds is None:
        url = httpx.URL(link.address)
        if _is_behind_a_proxy(link.address) or url.userinfo or url.query:
            return httpx.Client(limits=LIMITS)
    return SocketClient(SocketTransport(uds=link.uds))


def _is_behind_a_proxy(address: str) -> bool:
    """Tell whether the environment names a proxy for a URL."""
    url = httpx.URL(address)
    named = urllib.request.getproxies()
    bypassed = urllib.request.proxy_bypass(url.host)
    return bool(named.get(url.scheme) or named.get("all")) and not bypassed


def _awaited(link: Link) -> httpx.AsyncHTTPTransport | None:
    return None if link.uds is None else httpx.AsyncHTTPTransport(uds=link.uds, limits=LIMITS)
