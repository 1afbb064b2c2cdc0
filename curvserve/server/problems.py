"""Every error as an RFC 9457 problem document; no traceback and no path leaves the server."""

import json
import logging
import math
from typing import Any

from curvserve_client.errors import (
    BodyTooLarge,
    Draining,
    InvalidRequest,
    MethodNotAllowed,
    NotFound,
    ProblemError,
    problem_document,
)
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.responses import Response

from ..sessions import CallerGone
from .answers import etag
from .request_id import HEADER

MEDIA_TYPE = "application/problem+json"

_LOG = logging.getLogger("curvserve.problems")

EXPECTED = (ProblemError, ClientDisconnect, CallerGone)
"""What routes raise as a matter of course."""

_BY_STATUS = {404: NotFound, 405: MethodNotAllowed, 413: BodyTooLarge, 503: Draining}


def handle_problems(app: FastAPI) -> None:
    """Have an application answer every error with a problem document."""
    for kind in EXPECTED:
        app.add_exception_handler(kind, _expected)
    app.add_exception_handler(HTTPException, _http_exception)
    app.add_exception_handler(RequestValidationError, _invalid_request)


def error_answer(request: Request, error: Exception) -> Response:
    """Return the answer of a request that has failed with one of `EXPECTED`."""
    if not isinstance(error, ProblemError):
        return Response(status_code=499)  # the caller hung up: this goes nowhere but to the log
    if error.status not in (503, 504) and error.status >= 500:
        _LOG.error(error.code, exc_info=error)
    return problem_answer(request, error)


def first_error(errors: Any) -> str:
    """Return pydantic's first complaint in one line."""
    error = next(iter(errors))
    return f"{'.'.join(map(str, error['loc']))}: {error['msg']}"


def problem_answer(request: Request, error: ProblemError) -> Response:
    """Return an error as an answer.

    Args:
        request: the request that failed.
        error: why.
    """
    request_id = getattr(request.state, "request_id", None)
    session = getattr(request.state, "session", None)
    headers = {HEADER: request_id} if request_id else {}
    exchange = getattr(request.state, "exchange", None)
    if exchange is not None:
        exchange.problem = error.code
    if session is not None:
        headers["etag"] = etag(session.state.version)
    if error.retry_after is not None:
        headers["retry-after"] = f"{math.ceil(error.retry_after)}"
    document = problem_document(error) | {"request_id": request_id}
    return Response(json.dumps(document), error.status, headers, MEDIA_TYPE)


async def _expected(request: Request, error: Exception) -> Response:
    return error_answer(request, error)


async def _http_exception(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    problem = _BY_STATUS.get(error.status_code, InvalidRequest)
    answer = problem_answer(
        request, problem(f"{request.method} {request.url.path}: {error.detail}")
    )
    answer.headers.update(error.headers or {})  # Allow, on 405
    return answer


async def _invalid_request(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    return problem_answer(request, InvalidRequest(first_error(error.errors())))
