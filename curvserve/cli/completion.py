"""What a shell completes: quick, and silent where there is nothing to offer."""

import re
from collections.abc import Iterator
from importlib.metadata import entry_points
from pathlib import Path

import typer

_FACTORY = re.compile(r"^@register\ndef (\w+)\(", re.MULTILINE)


def model_names() -> Iterator[str]:
    """Yield the names of the registered models; they are read, not imported, as torch would be."""
    for file in sorted((Path(__file__).parents[1] / "models").glob("*.py")):
        yield from _FACTORY.findall(file.read_text())
    yield from (point.name for point in entry_points(group="curvserve.models"))


def complete_model(incomplete: str) -> list[str]:
    """Return the models whose names begin like a word."""
    return [name for name in model_names() if name.startswith(incomplete)]


def complete_session(ctx: typer.Context, incomplete: str) -> list[str]:
    """Return the server's sessions whose names begin like a word; none where it does not answer."""
    import httpx

    from .probe import probe
    from .reach import CannotAsk

    try:
        with probe(ctx.params["url"], ctx.params["key_file"], seconds=1.0) as http:
            sessions = http.get("/v1/sessions").raise_for_status().json()["sessions"]
            return [each["name"] for each in sessions if each["name"].startswith(incomplete)]
    except (httpx.HTTPError, CannotAsk, ValueError, LookupError):
        return []  # a shell that waits for a word has no room for a message
