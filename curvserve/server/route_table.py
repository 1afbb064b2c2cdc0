"""Every call of the application and what it takes to make it: the one table of access."""

import re
from collections.abc import Mapping
from dataclasses import dataclass

from fastapi import FastAPI
from fastapi.routing import iter_route_contexts
from starlette._utils import get_route_path  # what its router itself matches
from starlette.routing import compile_path
from starlette.types import Scope as Connection

from ..api_keys import Scope
from .direct import DirectRoute, Handler

OPEN = None
"""Anyone may make the call."""

_SESSION = "/v1/sessions/{name}"

SCOPES: Mapping[str, Scope | None] = {
    "GET /": OPEN,  # the page asks for a key itself, and with it for what it shows
    "GET /docs": OPEN,
    "GET /page/{path:path}": OPEN,
    "GET /livez": OPEN,
    "GET /readyz": OPEN,
    "GET /metrics": Scope.READ,
    "GET /openapi.json": Scope.READ,
    "GET /v1/models": Scope.READ,
    "GET /v1/models/{model}": Scope.READ,
    "GET /v1/sessions": Scope.READ,
    "POST /v1/sessions": Scope.TRAIN,
    f"GET {_SESSION}": Scope.READ,
    f"DELETE {_SESSION}": Scope.ADMIN,
    f"GET {_SESSION}/parameters": Scope.READ,
    f"PUT {_SESSION}/parameters": Scope.TRAIN,
    f"POST {_SESSION}/evaluate": Scope.READ,
    f"POST {_SESSION}/curvature": Scope.READ,
    f"POST {_SESSION}/step": Scope.TRAIN,
    f"POST {_SESSION}/forward_backward": Scope.TRAIN,
    f"POST {_SESSION}/optim_step": Scope.TRAIN,
    f"GET {_SESSION}/checkpoints": Scope.READ,
    f"POST {_SESSION}/checkpoints": Scope.TRAIN,
    f"GET {_SESSION}/checkpoints/{{checkpoint}}": Scope.READ,
    f"GET {_SESSION}/history": Scope.READ,
    "GET /v1/events": Scope.READ,
    "GET /v1/backup": Scope.ADMIN,
}
"""Method and path of every route -> the smallest scope that allows it."""


@dataclass(frozen=True)
class Call:
    """What a request asks for.

    Attributes:
        route: the route's path with its parameters' names; `unmatched` where there is no such path.
        scope: the smallest scope that allows it; None where it is open.
        parameters: the values of the path's parameters.
        handler: what answers it where that is a `DirectRoute`.
    """

    route: str
    scope: Scope | None
    parameters: Mapping[str, str]
    handler: Handler | None = None


NO_ROUTE = Call("unmatched", Scope.READ, {})
"""A path that does not exist is told to callers with a key only."""


@dataclass(frozen=True)
class _Row:
    pattern: re.Pattern[str]
    path: str
    scopes: Mapping[str, Scope | None]
    handler: Handler | None


class RouteTable:
    """The application's routes, each with its row of `SCOPES`."""

    def __init__(self, app: FastAPI) -> None:
        """Look up every route.

        Args:
            app: an application that has all its routes.

        Raises:
            LookupError: a route without a row: nobody has said who may call it.
        """
        self._rows: list[_Row] = []
        for route in iter_route_contexts(app.routes):
            path, methods = str(route.path), (route.methods or {"ANY"}) - {"HEAD"}
            original = route.original_route
            calls = {method: f"{method} {path}" for method in sorted(methods)}
            if absent := calls.values() - SCOPES.keys():
                raise LookupError(f"no scope for {', '.join(sorted(absent))} in SCOPES")
            scopes = {method: SCOPES[call] for method, call in calls.items()}
            handler = original.handler() if isinstance(original, DirectRoute) else None
            self._rows.append(_Row(compile_path(path)[0], path, scopes, handler))

    def calls(self) -> list[str]:
        """Return method and path of every route."""
        return [f"{method} {row.path}" for row in self._rows for method in row.scopes]

    def find(self, connection: Connection) -> Call:
        """Return what a request asks for."""
        path, asked = get_route_path(connection), connection["method"]
        method = "GET" if asked == "HEAD" else asked
        matched: Call = NO_ROUTE
        for row in self._rows:
            if match := row.pattern.match(path):
                handler = row.handler if asked in row.scopes else None
                scope = row.scopes.get(method, Scope.READ)
                matched = Call(row.path, scope, match.groupdict(), handler)
                if method in row.scopes:
                    break  # a path may stand once for each of its methods
        return matched
