"""Routes that are called at every step, without what FastAPI does for those that need it."""

import inspect
from collections.abc import Awaitable, Callable
from typing import Any

from fastapi import Request
from fastapi.routing import APIRoute
from starlette.responses import Response

from .context import current_context, current_session

Handler = Callable[[Request], Awaitable[Response]]


class DirectRoute(APIRoute):
    """A route that `Shortcut` calls where request, session and context are all that it takes.

    FastAPI, which has it in its schema, would need 0.2 ms more; docs/decisions/0023 and 0032 have
    the figures.
    """

    def handler(self) -> Handler | None:
        """Return what answers a request with its path's parameters; None if it takes more."""
        names = inspect.signature(self.endpoint).parameters
        if names.keys() - {"request", "session", "context"}:
            return None

        async def handle(request: Request) -> Response:
            given: dict[str, Any] = {}
            if "request" in names:
                given["request"] = request
            if "context" in names:
                given["context"] = await current_context(request)
            if "session" in names:
                given["session"] = await current_session(request.path_params["name"], request)
            response: Response = await self.endpoint(**given)
            return response

        return handle
