"""Opening a journal that may be damaged."""

import os
import sqlite3
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from .journal import EPOCHS, SELECT, DatabaseDamaged, Journal, connect
from .records import Level
from .rows import Row, is_sound


def open_journal(file: Path, level: Level) -> tuple[Journal, list[str]]:
    """Open a journal; put a damaged one aside and take over every row of it that is sound.

    Args:
        file: the database, made if missing.
        level: what its commits shall survive.

    Returns:
        The journal, and what was found and done, in sentences.

    Raises:
        UnknownFormat: it is one of another version.
        sqlite3.Error: it cannot be read or written.
        OSError: likewise.
    """
    synchronous = "FULL" if level is Level.FULL else "NORMAL"
    try:
        return Journal(file, synchronous), []
    except DatabaseDamaged as error:
        rows, epochs = _sound_rows(file), _epochs(file)
        aside = _put_aside(file)
        problem = (
            f"the journal {file} is damaged ({error}); it was put aside as {aside.name} and "
            f"{len(rows)} changes were taken over from it"
        )
    journal = Journal(file, synchronous)
    journal.restore(rows, epochs)
    return journal, [problem]


def _sound_rows(file: Path) -> list[Row]:
    # from both ends: a damaged page ends a scan, and hides what lies behind it
    found = [*_select(file, SELECT), *_select(file, f"{SELECT} ORDER BY number DESC")]
    unique = {row[:4]: row for row in found if is_sound(row)}
    return sorted(unique.values(), key=lambda row: (row[0], row[1] is None, row[1]))


def _epochs(file: Path) -> list[Row]:
    return [row for row in _select(file, EPOCHS) if type(row[0]) is int]


def _select(file: Path, query: str) -> Sequence[Row]:
    """Return the rows that can be read until SQLite gives up."""
    found: list[Row] = []
    with suppress(sqlite3.Error, UnicodeDecodeError):  # the damage that brought us here
        db = connect(file)
        try:
            db.execute("PRAGMA locking_mode = EXCLUSIVE")
            for row in db.execute(query):
                found.append(row)
        finally:
            db.close()
    return found


def _put_aside(file: Path) -> Path:
    number = 1
    while (aside := file.with_name(f"{file.name}.damaged-{number}")).exists():
        number += 1
    for suffix in ("-wal", ""):  # the database last: without it the log means nothing
        log = file.with_name(file.name + suffix)
        if log.exists():
            os.replace(log, aside.with_name(aside.name + suffix))
    return aside
