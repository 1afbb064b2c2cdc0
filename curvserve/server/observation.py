"""Times, counts and logs every request, and tells the caller where its time went."""

import logging
from collections.abc import Mapping
from typing import Any

from curvserve_client.errors import InternalError
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from .. import phases
from .exchange import Exchange
from .metrics import Metrics
from .problems import problem_answer
from .route_table import NO_ROUTE, OPEN, RouteTable
from .status import Status

_LOG = logging.getLogger("curvserve.access")

LOCAL = "Unix socket"
"""What a peer without an address is called."""


class Observation:
    """Middleware: Server-Timing and Durable-Version on every answer, metrics and a line of log.

    An error that nobody expected is answered here, with the same headers as any other answer, and
    then goes on to the server's log.
    """

    def __init__(self, app: ASGIApp, routes: RouteTable, metrics: Metrics, status: Status) -> None:
        """Wrap an application.

        Args:
            app: what is observed.
            routes: its routes.
            metrics: what is counted.
            status: what is told to those who watch.
        """
        self._app = app
        self._routes = routes
        self._metrics = metrics
        self._status = status

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        peer = (scope["client"] or (LOCAL,))[0]
        exchange = Exchange(scope["method"], scope["path"], self._routes.find(scope), peer)
        scope["state"]["exchange"] = exchange
        phases.current.set(exchange.phases)
        receive = _counting(exchange, receive)
        send = _telling(exchange, scope["state"], send)
        with self._metrics.in_flight.track_inprogress():
            try:
                await self._app(scope, receive, send)
            except Exception:  # answered as internal; it goes on to the log
                if not exchange.status:
                    await _failure(Request(scope))(scope, receive, send)
                raise
            finally:
                self._metrics.observe(exchange)
                self._status.observe(exchange)
                _log(exchange)


def _failure(request: Request) -> Response:
    error = InternalError("the server met an error that it did not expect")
    answer = problem_answer(request, error)
    answer.headers["connection"] = "close"  # as uvicorn does after an error, without saying so
    return answer


def _counting(exchange: Exchange, receive: Receive) -> Receive:
    async def counted() -> Message:
        message = await receive()
        exchange.received += len(message.get("body", b""))
        return message

    return counted


def _telling(exchange: Exchange, state: Mapping[str, Any], send: Send) -> Send:
    async def told(message: Message) -> None:
        if message["type"] == "http.response.start":
            exchange.status = message["status"]
            headers = [*message["headers"], (b"server-timing", _server_timing(exchange).encode())]
            session = state.get("session")
            if session is not None and session.durable_version is not None:
                headers.append((b"durable-version", b"%d" % session.durable_version))
            message["headers"] = headers
        exchange.sent += len(message.get("body", b""))
        await send(message)

    return told


def _server_timing(exchange: Exchange) -> str:
    """Return the header of W3C Server Timing: metric;dur=milliseconds."""
    taken = exchange.milliseconds().items()
    return ", ".join(f"{name};dur={milliseconds:.3f}" for name, milliseconds in taken)


def _log(exchange: Exchange) -> None:
    level = _level(exchange)
    if not _LOG.isEnabledFor(level):
        return
    fields = {
        "method": exchange.method,
        "route": exchange.call.route,
        "path": exchange.path if exchange.call is NO_ROUTE else None,
        "session": exchange.call.parameters.get("name"),
        "status": exchange.status,
        "code": exchange.problem,
        "key": exchange.key,
        "received_bytes": exchange.received,
        "sent_bytes": exchange.sent,
    }
    taken = {f"{name}_ms": round(value, 3) for name, value in exchange.milliseconds().items()}
    line = f"{exchange.method} {exchange.call.route} {exchange.status or 'unanswered'}"
    known = {name: value for name, value in fields.items() if value is not None}
    _LOG.log(level, line, extra={"fields": known | taken})


def _level(exchange: Exchange) -> int:
    if exchange.call.scope is OPEN:
        return logging.DEBUG  # probes come every few seconds and say nothing
    return logging.INFO if exchange.status < 500 else logging.ERROR
