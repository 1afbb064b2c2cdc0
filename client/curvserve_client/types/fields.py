"""Typed reading of JSON objects: each function returns one member or raises ProtocolError."""

import json
import sys
from collections.abc import Mapping
from typing import Any, NoReturn, TypeGuard

from ..errors import ProtocolError

_LARGEST = sys.float_info.max


def _constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a JSON number")


_DECODER = json.JSONDecoder(parse_constant=_constant)


def parse_json(source: str | bytes | bytearray | memoryview) -> Any:
    """Return the JSON value in a text; NaN and Infinity are not JSON.

    Raises:
        ProtocolError: it is no JSON.
    """
    try:
        decoded = source if isinstance(source, str) else str(source, "utf-8")
        return _DECODER.decode(decoded)
    except (ValueError, RecursionError) as error:
        raise ProtocolError(f"the answer is not JSON: {error}") from error


def text(document: Mapping[str, Any], name: str) -> str:
    """Return a string member."""
    value = _member(document, name)
    return value if isinstance(value, str) else _refuse(name, "a string", value)


def whole(document: Mapping[str, Any], name: str) -> int:
    """Return a whole number >= 0."""
    value = _member(document, name)
    return value if _is_whole(value) else _refuse(name, "a whole number >= 0", value)


def whole_or_none(document: Mapping[str, Any], name: str) -> int | None:
    """Return a whole number >= 0; None where it is null."""
    return None if _member(document, name) is None else whole(document, name)


def truth(document: Mapping[str, Any], name: str) -> bool:
    """Return true or false."""
    value = _member(document, name)
    return value if isinstance(value, bool) else _refuse(name, "true or false", value)


def options(document: Mapping[str, Any], name: str) -> dict[str, bool | int | float]:
    """Return an object of numbers and truth values, as they are."""
    value = record(document, name)
    if not all(isinstance(item, bool) or _is_number(item) for item in value.values()):
        _refuse(name, "an object of numbers", value)
    return dict(value)


def number(document: Mapping[str, Any], name: str) -> float:
    """Return a finite number as float."""
    value = _member(document, name)
    return float(value) if _is_number(value) else _refuse(name, "a finite number", value)


def number_or_none(document: Mapping[str, Any], name: str) -> float | None:
    """Return a number as float; None where it is null or missing."""
    return None if document.get(name) is None else number(document, name)


def record(document: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    """Return an object member."""
    value = _member(document, name)
    return value if isinstance(value, Mapping) else _refuse(name, "an object", value)


def records(document: Mapping[str, Any], name: str) -> list[Mapping[str, Any]]:
    """Return a list of objects."""
    value = _items(document, name, "a list of objects")
    if not all(isinstance(item, Mapping) for item in value):
        _refuse(name, "a list of objects", value)
    return list(value)


def numbers(document: Mapping[str, Any], name: str) -> dict[str, float]:
    """Return an object of numbers."""
    value = record(document, name)
    return {key: number(value, key) for key in value}


def texts(document: Mapping[str, Any], name: str) -> tuple[str, ...]:
    """Return a list of strings."""
    value = _items(document, name, "a list of strings")
    if not all(isinstance(item, str) for item in value):
        _refuse(name, "a list of strings", value)
    return tuple(value)


def shape(document: Mapping[str, Any], name: str) -> tuple[int, ...]:
    """Return a list of whole numbers."""
    value = _items(document, name, "a list of whole numbers")
    if not all(_is_whole(item) for item in value):
        _refuse(name, "a list of whole numbers", value)
    return tuple(value)


def _items(document: Mapping[str, Any], name: str, kind: str) -> list[Any] | tuple[Any, ...]:
    value = _member(document, name)
    return value if isinstance(value, list | tuple) else _refuse(name, kind, value)


def _member(document: Mapping[str, Any], name: str) -> Any:
    if name not in document:
        raise ProtocolError(f"the answer has no member {name!r}")
    return document[name]


def _is_whole(value: object) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _is_number(value: object) -> TypeGuard[int | float]:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= _LARGEST


def _refuse(name: str, kind: str, value: object) -> NoReturn:
    raise ProtocolError(f"the answer's {name!r} is not {kind}: {value!r:.80}")
