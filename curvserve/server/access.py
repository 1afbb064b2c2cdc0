"""Who may call: bearer keys (RFC 6750), checked before anything of a request is read."""

from curvserve_client.errors import Forbidden, NotFound, ProblemError, Unauthorized
from fastapi import Request
from starlette.types import ASGIApp, Receive, Scope, Send

from ..api_keys import KeyRing
from .exchange import exchange_of
from .problems import problem_answer
from .route_table import NO_ROUTE

_REALM = 'Bearer realm="curvserve"'


class Access:
    """Middleware: lets through what the request's key allows; nothing of the body is received."""

    def __init__(self, app: ASGIApp, keys: KeyRing) -> None:
        """Guard an application.

        Args:
            app: what is guarded.
            keys: who may call.
        """
        self._app = app
        self._keys = keys

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request = Request(scope)
        refusal = self._refuse(request)
        if refusal is None:
            await self._app(scope, receive, send)
            return
        error, challenge = refusal
        answer = problem_answer(request, error)
        if challenge:
            answer.headers["www-authenticate"] = challenge
        await answer(scope, receive, send)

    def _refuse(self, request: Request) -> tuple[ProblemError, str] | None:
        exchange = exchange_of(request.scope)
        needed = exchange.call.scope
        if needed is None:
            return None
        scheme, _, given = request.headers.get("authorization", "").partition(" ")
        if scheme.lower() != "bearer":
            expected = "Authorization: Bearer KEY"
            return Unauthorized("the request has no API key", expected=expected), _REALM
        key = self._keys.find(given.strip())
        if key is None:
            unknown = Unauthorized("no such API key is known here")
            return unknown, f'{_REALM}, error="invalid_token"'
        exchange.key = key.name
        if key.scope < needed:
            detail = f"the API key {key.name!r} has the scope {key.scope}"
            return (
                Forbidden(detail, expected=f"the scope {needed}"),
                f'{_REALM}, error="insufficient_scope", scope="{needed}"',
            )
        if exchange.call is NO_ROUTE:  # said here: what the table does not know is never let in
            return NotFound(f"{exchange.method} {exchange.path}: Not Found"), ""
        return None
