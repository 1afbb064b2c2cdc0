"""Routes that are called at every step, without what FastAPI does for those that need it."""

import inspect
from collections.abc import Callable, Coroutine
from typing import Any

from fastapi import Request
from fastapi.routing import APIRoute
from starlette.responses import Response

from .context import current_context, current_session


class DirectRoute(APIRoute):
    """A route that calls its function itself where request, session and context are all it takes.

    FastAPI takes 0.1 ms more for the same dependencies; docs/decisions/0023 has the figures.
    """

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """Return what answers a request."""
        names = inspect.signature(self.endpoint).parameters
        if names.keys() - {"request", "session", "context"}:
            return super().get_route_handler()

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
