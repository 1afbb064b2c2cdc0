"""Holds every answer that a test gets against the OpenAPI document."""

import re
from functools import cache
from typing import Any

import httpx

PROBLEM = "application/problem+json"
NO_ROUTE = ("not_found", "method_not_allowed")


@cache
def paths() -> dict[str, Any]:
    """The paths of the OpenAPI document."""
    from curvserve.models import resolve
    from curvserve.server import create_app

    found = create_app([resolve("mnist_cnn")]).openapi()["paths"]
    assert isinstance(found, dict)
    return found


def codes(response: dict[str, Any]) -> list[str]:
    """The codes that a documented response names; none where it is no problem."""
    if PROBLEM not in response.get("content", {}):
        return []
    _, own = response["content"][PROBLEM]["schema"]["allOf"]
    return list(own["properties"]["code"]["enum"])


def operation(request: httpx.Request) -> dict[str, Any]:
    """The documented operation that a request asks for."""
    (path,) = [
        template
        for template in paths()
        if re.fullmatch(
            re.sub(r"\{\w+\}", "[^/]+", template), request.url.raw_path.decode().partition("?")[0]
        )
    ]
    found = paths()[path][request.method.lower()]
    assert isinstance(found, dict)
    return found


def check_documented(answer: httpx.Response) -> None:
    """Refuse an answer whose status, or whose code, its route does not document."""
    if answer.url.path == "/openapi.json":
        return
    answer.read()
    problem = answer.headers.get("content-type") == PROBLEM
    code = answer.json()["code"] if problem else None
    if code in NO_ROUTE:
        return
    responses = operation(answer.request)["responses"]
    status = str(answer.status_code)
    assert status in responses, f"{answer.request.url} does not document {status} {code}"
    if code is not None:
        assert code in codes(responses[status]), f"{answer.request.url} does not document {code}"
