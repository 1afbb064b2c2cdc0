"""What the calls have in common: paths, preconditions, bodies."""

import json
from collections.abc import Mapping
from typing import Any, Literal
from urllib.parse import quote

from torch import Tensor

from .. import wire
from ..messages import JSON, PROBLEM

Version = int | Literal["*"]
"""What If-Match names: a version, or whatever is current."""

SAFETENSORS = {"Content-Type": wire.MEDIA_TYPE}
DOCUMENT = {"Content-Type": JSON}


def escape(name: str) -> str:
    """Return a name as one segment of a path."""
    return quote(name, safe="")


def path(session: str, *nouns: str) -> str:
    """Return the path of a session, or of something in it."""
    return "/".join(["/v1/sessions", escape(session), *map(escape, nouns)])


def accept(media_type: str) -> dict[str, str]:
    """Return the header that asks for a media type, and for problems."""
    return {"Accept": f"{media_type}, {PROBLEM}"}


def version_tag(version: Version) -> str:
    """Return a version as an entity tag."""
    return version if version == "*" else f'"{version}"'


def change(version: Version, key: str) -> dict[str, str]:
    """Return the headers of a call that changes a session."""
    return {"If-Match": version_tag(version), "Idempotency-Key": key}


def batch(inputs: Tensor, targets: Tensor) -> list[memoryview]:
    """Return a batch as the parts of a body."""
    return wire.encode({"inputs": inputs, "targets": targets})


def query(options: Mapping[str, Any]) -> dict[str, str]:
    """Return options of a rule as query parameters."""
    return {option: json.dumps(value) for option, value in options.items()}
