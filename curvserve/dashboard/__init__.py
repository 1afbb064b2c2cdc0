"""The page: plain files that a browser reads as they are. See docs/page.md."""

from collections.abc import Mapping
from functools import cache
from importlib.resources import files
from importlib.resources.abc import Traversable

MEDIA_TYPES: Mapping[str, str] = {
    "html": "text/html; charset=utf-8",
    "css": "text/css; charset=utf-8",
    "js": "text/javascript; charset=utf-8",
    "svg": "image/svg+xml",
}
"""Ending of a file's name -> its media type; files with other endings are not served."""


@cache
def contents() -> Mapping[str, bytes]:
    """Return every file that is served: path below this folder -> bytes."""
    return dict(_below(files(__name__), ""))


def _below(folder: Traversable, path: str) -> list[tuple[str, bytes]]:
    found = []
    for each in sorted(folder.iterdir(), key=lambda each: each.name):
        if each.is_dir():
            found += _below(each, f"{path}{each.name}/")
        elif each.name.rpartition(".")[2] in MEDIA_TYPES:
            found.append((f"{path}{each.name}", each.read_bytes()))
    return found
