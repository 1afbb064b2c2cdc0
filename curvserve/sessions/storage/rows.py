"""Changes as rows of the journal: each row carries a checksum of its own columns."""

import dataclasses
import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import xxhash

from .records import BatchRef, Change, FailedChange

Row = tuple[Any, ...]
"""The values of `COLUMNS`."""

COLUMNS = (
    "place",
    "version",
    "key",
    "fingerprint",
    "kind",
    "options",
    "batches",
    "segment",
    "answer",
    "digest",
    "epoch",
    "time",
    "checksum",
)
"""A change; `version` is NULL where it failed, `segment` is the first that its batches lie in."""


@dataclass
class Journalled:
    """What the journal holds of one session.

    Attributes:
        changes: version -> committed change.
        failed: refused requests, the oldest first.
        damaged: how many rows do not match their checksum.
    """

    changes: dict[int, Change] = field(default_factory=dict)
    failed: list[FailedChange] = field(default_factory=list)
    damaged: int = 0


def change_row(place: str, change: Change) -> Row:
    """Return the row of a committed change."""
    batches = json.dumps([dataclasses.astuple(ref) for ref in change.batches])
    first = min((ref.segment for ref in change.batches if ref.segment), default=None)
    return _checked(
        place,
        change.version,
        change.key,
        change.fingerprint,
        change.kind,
        json.dumps(dict(change.options)),
        batches,
        first,
        json.dumps(dict(change.answer)),
        change.digest,
        change.epoch,
        change.time,
    )


def failed_row(place: str, failed: FailedChange, epoch: int) -> Row:
    """Return the row of a refused request."""
    problem = json.dumps(dict(failed.problem))
    head = (place, None, failed.key, failed.fingerprint, failed.kind)
    return _checked(*head, "{}", "[]", None, problem, "", epoch, failed.time)


def is_sound(row: Row) -> bool:
    """Tell whether a row matches its checksum."""
    return bool(row[-1] == _checksum(row[:-1]))


def read_rows(rows: Iterable[Row]) -> Journalled:
    """Return what rows of one session say, those that are sound."""
    found = Journalled()
    for row in rows:
        named = dict(zip(COLUMNS, row, strict=True))
        if not is_sound(row):
            found.damaged += 1
        elif named["version"] is None:
            found.failed.append(_failed(named))
        else:
            found.changes[named["version"]] = _change(named)
    return found


def _checked(*columns: Any) -> Row:
    return (*columns, _checksum(columns))


def _checksum(columns: Row) -> bytes:
    plain = [column.hex() if isinstance(column, bytes) else column for column in columns]
    return xxhash.xxh3_64_digest(json.dumps(plain).encode())


def _change(named: dict[str, Any]) -> Change:
    return Change(
        version=named["version"],
        key=named["key"],
        fingerprint=named["fingerprint"],
        kind=named["kind"],
        options=json.loads(named["options"]),
        batches=tuple(BatchRef(*ref) for ref in json.loads(named["batches"])),
        answer=json.loads(named["answer"]),
        digest=named["digest"],
        epoch=named["epoch"],
        time=named["time"],
    )


def _failed(named: dict[str, Any]) -> FailedChange:
    return FailedChange(
        key=named["key"],
        fingerprint=named["fingerprint"],
        kind=named["kind"],
        problem=json.loads(named["answer"]),
        time=named["time"],
    )
