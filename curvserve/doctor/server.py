"""What a running server says of itself."""

import time
from collections.abc import Iterator

import httpx

from .check import Check


def ask(http: httpx.Client) -> Iterator[Check]:
    """Yield whether a server answers, takes work, and which version it is.

    Args:
        http: reaches it; with its API key, where it wants one.
    """
    began = time.perf_counter()
    try:
        alive = http.get("/livez")
        trip = time.perf_counter() - began
        ready = http.get("/readyz")
        schema = http.get("/openapi.json")
    except httpx.HTTPError as error:
        advice = "is it running, and is this its address?"
        yield Check("server", f"no answer: {error}", "error", advice)
        return
    if alive.status_code != 200:
        advice = "is this a curvserve? does a proxy stand before it?"
        yield Check("server", f"/livez answers {alive.status_code}", "error", advice)
        return
    yield Check("server", f"answers in {1e3 * trip:.1f} ms")
    if ready.status_code == 200:
        yield Check("ready", "takes work")
    else:
        advice = "it is stopping; a second look after its start tells more"
        yield Check("ready", f"/readyz answers {ready.status_code}", "error", advice)
    yield _version(schema)


def _version(schema: httpx.Response) -> Check:
    if schema.status_code in (401, 403):
        advice = "give --api-key-file or CURVSERVE_API_KEY to see more"
        return Check("version", "told to callers with a key", "ok", advice)
    if schema.status_code != 200:
        return Check("version", f"/openapi.json answers {schema.status_code}", "error")
    return Check("version", str(schema.json()["info"]["version"]))
