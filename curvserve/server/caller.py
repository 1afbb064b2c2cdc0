"""The one who waits for an answer: for how long, and whether still."""

from fastapi import Request

from .exchange import exchange_of
from .limits import Limits


class Caller:
    """See `curvserve.sessions.Caller`.

    Attributes:
        seconds: how long the answer may take, from now on.
        account: whose requests this one is counted among.
    """

    def __init__(self, request: Request, limits: Limits) -> None:
        """Look at a request whose body has been received.

        Args:
            request: the request.
            limits: caps and deadlines.
        """
        self.seconds = limits.work_seconds
        self.account = exchange_of(request.scope).account
        self._receive = request.receive

    async def gone(self) -> None:
        """Return once nobody waits any more."""
        while (await self._receive())["type"] != "http.disconnect":
            pass
