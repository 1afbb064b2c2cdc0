"""A name for every request, so that an answer can be found in the log."""

import re
import uuid
from contextvars import ContextVar

from starlette.types import ASGIApp, Message, Receive, Scope, Send

HEADER = "x-request-id"
_NAME = HEADER.encode()

current: ContextVar[str] = ContextVar("curvserve.request_id")
"""The id of the request that is being answered; every line of log made meanwhile carries it."""

_SAFE = re.compile(r"[A-Za-z0-9._-]{1,64}")


class RequestId:
    """Middleware: takes the caller's X-Request-Id, or makes one, and puts it on the answer."""

    def __init__(self, app: ASGIApp) -> None:
        """Wrap an application."""
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        given = next((value for name, value in scope["headers"] if name == _NAME), b"").decode(
            "latin-1"
        )
        request_id = given if _SAFE.fullmatch(given) else uuid.uuid4().hex
        scope.setdefault("state", {})["request_id"] = request_id
        current.set(
            request_id
        )  # left so: what is logged of the request after this is still its own

        async def send_named(message: Message) -> None:
            if message["type"] == "http.response.start":
                others = [header for header in message["headers"] if header[0] != _NAME]
                message["headers"] = [*others, (_NAME, request_id.encode())]
            await send(message)

        await self._app(scope, receive, send_named)
