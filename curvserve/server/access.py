"""Who may call: bearer keys (RFC 6750), checked before anything of a request is read."""

from curvserve_client.errors import Forbidden, NotFound, ProblemError, Unauthorized
from fastapi import Request
from starlette.types import ASGIApp, Receive, Scope, Send

from ..api_keys import ApiKey, KeyRing
from .exchange import Exchange, exchange_of
from .problems import problem_answer
from .quotas import Quotas
from .route_table import NO_ROUTE

_ERRORS = {Unauthorized: "invalid_token", Forbidden: "insufficient_scope"}


class Access:
    """Middleware: lets through what the request's key allows; nothing of the body is received."""

    def __init__(self, app: ASGIApp, keys: KeyRing, quotas: Quotas) -> None:
        """Guard an application.

        Args:
            app: what is guarded.
            keys: who may call.
            quotas: how much each may have under way.
        """
        self._app = app
        self._keys = keys
        self._quotas = quotas

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request, exchange = Request(scope), exchange_of(scope)
        try:
            self._check(exchange, request.headers.get("authorization", ""))
        except ProblemError as error:
            answer = problem_answer(request, error)
            if type(error) in _ERRORS:
                answer.headers["www-authenticate"] = _challenge(request, error)
            await answer(scope, receive, send)
        else:
            await self._app(scope, receive, send)

    def _check(self, exchange: Exchange, authorization: str) -> None:
        needed = exchange.call.scope
        if needed is None:
            return
        key = self._find(authorization)
        exchange.key, exchange.account = key.name, self._quotas.of(key)
        if key.scope < needed:
            detail = f"the API key {key.name!r} has the scope {key.scope}"
            raise Forbidden(detail, expected=f"the scope {needed}")
        if exchange.call is NO_ROUTE:  # said here: what the table does not know is never let in
            raise NotFound(f"{exchange.method} {exchange.path}: Not Found")

    def _find(self, authorization: str) -> ApiKey:
        scheme, _, given = authorization.partition(" ")
        if scheme.lower() != "bearer":
            expected = "Authorization: Bearer KEY"
            raise Unauthorized("the request has no API key", expected=expected)
        key = self._keys.find(given.strip())
        if key is None:
            raise Unauthorized("no such API key is known here")
        return key


def _challenge(request: Request, error: ProblemError) -> str:
    realm = 'Bearer realm="curvserve"'
    if "authorization" not in request.headers:
        return realm  # RFC 6750, section 3.1: nothing was wrong yet
    return f'{realm}, error="{_ERRORS[type(error)]}"'
