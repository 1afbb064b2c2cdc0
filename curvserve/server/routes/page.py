"""The page, the page of the API, and what they are made of: files, without any session's data."""

import hashlib
from typing import Annotated

from curvserve_client.errors import NotFound
from fastapi import APIRouter, Header
from starlette.responses import Response

from ... import dashboard

router = APIRouter(include_in_schema=False)

CONTENT_SECURITY_POLICY = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "connect-src 'self'",
        "img-src 'self' data:",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
    )
)
"""Nothing from elsewhere, nothing written into the page, and no other page around it."""

HEADERS = {
    "cache-control": "no-cache",  # kept, and asked for again: the ETag says whether it is the same
    "content-security-policy": CONTENT_SECURITY_POLICY,
    "cross-origin-opener-policy": "same-origin",
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
}

KnownTags = Annotated[str, Header(alias="if-none-match")]


@router.get("/")
async def page(known: KnownTags = "") -> Response:
    """Return the page."""
    return _file("index.html", known)


@router.get("/docs")
async def docs(known: KnownTags = "") -> Response:
    """Return the page of the API."""
    return _file("docs.html", known)


@router.get("/page/{path:path}")
async def part(path: str, known: KnownTags = "") -> Response:
    """Return what the pages are made of."""
    return _file(path, known)


def _file(path: str, known: str) -> Response:
    content = dashboard.contents().get(path)
    if content is None:
        raise NotFound(f"the page has no file {path!r}")
    tag = f'"{hashlib.sha256(content).hexdigest()[:32]}"'
    headers = HEADERS | {"etag": tag}
    if tag in known:
        return Response(status_code=304, headers=headers)
    return Response(
        content, headers=headers, media_type=dashboard.MEDIA_TYPES[path.rpartition(".")[2]]
    )
