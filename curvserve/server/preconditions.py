"""Request headers that say when a request may be carried out (RFC 9110, section 13)."""

import re
from typing import Any

from curvserve_client.errors import InvalidRequest, MissingIdempotencyKey, MissingVersion
from fastapi import Request

from ..sessions import Expectation

KEY = r"[\x21-\x7e]{1,255}"
"""An idempotency key, as a regular expression."""

_TAG = re.compile(r'(W/)?"([^"]*)"')
_NUMBER = re.compile("[0-9]{1,19}").fullmatch  # Python itself refuses to read very long ones


def _header(name: str, description: str, required: bool, **schema: Any) -> dict[str, Any]:
    found = {"name": name, "in": "header", "description": description, "required": required}
    return found | {"schema": {"type": "string"} | schema}


_EXPECTED = 'The version that the request is about, as `"7"`, or `*` for whatever is current.'

PRECONDITION: dict[str, Any] = {"parameters": [_header("If-Match", _EXPECTED, required=False)]}
"""What OpenAPI says of a route that can be asked about one version alone."""

PRECONDITIONS: dict[str, Any] = {
    "parameters": [
        _header(
            "Idempotency-Key",
            "New for each change, and the same again for its retry.",
            required=True,
            pattern=f"^{KEY}$",
        ),
        _header("If-Match", _EXPECTED, required=True),
    ]
}
"""What OpenAPI says of a route that changes a session."""

CACHED: dict[str, Any] = {
    "parameters": [_header("If-None-Match", 'The version that the caller has, as `"7"`.', False)]
}
"""What OpenAPI says of a route whose answer can be kept."""


def idempotency_key(request: Request) -> str:
    """Return the Idempotency-Key header.

    Raises:
        MissingIdempotencyKey: there is none.
        InvalidRequest: not 1 to 255 visible ASCII characters.
    """
    key = request.headers.get("idempotency-key", "")
    if not key:
        message = "a request that changes the session needs an Idempotency-Key header"
        raise MissingIdempotencyKey(
            message, expected="a new key for each change, a UUID for instance"
        )
    if not re.fullmatch(KEY, key):
        expected = "1 to 255 visible ASCII characters"
        raise InvalidRequest("the Idempotency-Key cannot be used", expected=expected)
    return key


def required_version(request: Request) -> Expectation:
    """Return what the If-Match header expects.

    Raises:
        MissingVersion: there is none.
        InvalidRequest: it is not `*` and not a list of quoted tags.
    """
    if "if-match" not in request.headers:
        message = "a request that changes the session needs an If-Match header"
        raise MissingVersion(
            message, expected='If-Match: "<version>", or * for whatever is current'
        )
    return optional_version(request)


def optional_version(request: Request) -> Expectation:
    """Return what the If-Match header expects; whatever is current where there is none.

    Raises:
        InvalidRequest: it is not `*` and not a list of quoted tags.
    """
    header = request.headers.get("if-match", "*").strip()
    if header == "*":
        return Expectation()
    tags = _tags(header)
    # If-Match compares strongly: a weak tag matches nothing
    return Expectation(frozenset(int(tag) for weak, tag in tags if not weak and _NUMBER(tag)))


def has_version(request: Request, version: int) -> bool:
    """Tell whether If-None-Match says that the caller has this version already."""
    header = request.headers.get("if-none-match", "").strip()
    if header in ("", "*"):
        return header == "*"
    return any(tag == str(version) for _, tag in _tags(header))


def _tags(header: str) -> list[tuple[str, str]]:
    parts = [_TAG.fullmatch(part.strip()) for part in header.split(",")]
    if not all(parts):
        expected = '"<version>" in quotes, or *'
        raise InvalidRequest(f"{header!r} is no list of entity tags", expected=expected)
    return [(part[1] or "", part[2]) for part in parts if part]
