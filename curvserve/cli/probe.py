"""Plain questions to a server, without the client library, which takes seconds to load."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from .reach import CannotAsk, read_key

if TYPE_CHECKING:
    import httpx


@contextmanager
def probe(url: str, key_file: Path | None, seconds: float) -> Iterator["httpx.Client"]:
    """Yield an HTTP client of a server.

    Args:
        url: `http://host:port` or `unix:/path`.
        key_file: file with the API key; None for that in `CURVSERVE_API_KEY`.
        seconds: how long it waits for each part of an answer.

    Raises:
        CannotAsk: it is no URL, or the key is none or cannot be read.
    """
    import httpx

    socket = url.removeprefix("unix:") if url.startswith("unix:/") else None
    if socket is None and not _is_url(url):
        raise CannotAsk(f"{url!r} is not a server's URL; expected http://host:port")
    key = read_key(key_file) or os.environ.get("CURVSERVE_API_KEY", "")
    if not (key.isascii() and key.isprintable()) or " " in key:
        raise CannotAsk("the API key holds spaces, line breaks or characters that are not ASCII")
    with httpx.Client(
        base_url="http://localhost" if socket else url,
        transport=httpx.HTTPTransport(uds=socket) if socket else None,
        headers={"authorization": f"Bearer {key}"} if key else {},
        timeout=seconds,
    ) as client:
        yield client


def _is_url(text: str) -> bool:
    import httpx

    try:
        url = httpx.URL(text)
    except httpx.InvalidURL:
        return False
    return url.scheme in ("http", "https") and bool(url.host)
