"""Logs of a server process: one line a record, for people or as JSON, each with its request's id.

What a caller sent may stand in a record, and cannot make it look like two: control characters are
escaped, and the lines of a traceback are indented.
"""

import json
import logging
import re
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any, Literal

from .request_id import current

_CONTROL = {
    code: f"\\u{code:04x}"
    for code in [*range(0x20), *range(0x7F, 0xA0), 0x2028, 0x2029, 0x202E, 0x2066, 0x2067, 0x2068]
}
_PLAIN = re.compile(r"[A-Za-z0-9_.:@/{}+-]+")


def configure(
    kind: Literal["console", "json"], level: Literal["debug", "info", "warning", "error"]
) -> None:
    """Write this process's records to standard error.

    Args:
        kind: how they are written.
        level: the least that is written; of other packages at least warnings.
    """
    handler = logging.StreamHandler()
    handler.setFormatter(JsonLines() if kind == "json" else Console())
    handler.addFilter(_name_request)
    least = getattr(logging, level.upper())
    logging.basicConfig(level=max(least, logging.WARNING), handlers=[handler], force=True)
    logging.getLogger("curvserve").setLevel(least)


class JsonLines(logging.Formatter):
    """One JSON object a line."""

    def format(self, record: logging.LogRecord) -> str:
        """Return a record as a line."""
        members = dict(_members(record))
        if record.exc_info:
            members["traceback"] = self.formatException(record.exc_info)
        return json.dumps(members, default=str)  # ASCII: every control character is escaped


class Console(logging.Formatter):
    """Time, level, logger, message and name=value."""

    def format(self, record: logging.LogRecord) -> str:
        """Return a record as a line, and its traceback as indented lines."""
        (_, time), (_, level), (_, name), (_, message), *fields = _members(record)
        pairs = [f"{field}={_value(value)}" for field, value in fields]
        lines = [" ".join([time, level, name, message.translate(_CONTROL), *pairs])]
        if record.exc_info:
            lines += self.formatException(record.exc_info).splitlines()
        return "\n    ".join(line.translate(_CONTROL) for line in lines)


def _members(record: logging.LogRecord) -> Iterator[tuple[str, Any]]:
    time = datetime.fromtimestamp(record.created, UTC)
    yield "time", time.isoformat(timespec="milliseconds")
    yield "level", record.levelname.lower()
    yield "logger", record.name
    yield "message", record.getMessage().strip()
    yield from getattr(record, "fields", {}).items()


def _value(value: object) -> str:
    text = str(value)
    return text if _PLAIN.fullmatch(text) else json.dumps(text)


def _name_request(record: logging.LogRecord) -> bool:
    """Add the id of the request that a record was made in."""
    if request_id := current.get(None):
        record.fields = {"request_id": request_id} | getattr(record, "fields", {})
    return True
