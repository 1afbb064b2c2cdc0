"""The journal: one SQLite database for all sessions of a data folder."""

import json
import os
import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from pathlib import Path

from ... import failpoints
from .errors import JournalConflict, UnknownFormat, refused
from .records import REMEMBERED, Change, FailedChange
from .rows import COLUMNS, Journalled, Row, change_row, failed_row, read_rows
from .states import now

FORMAT = 1
"""Written into the database; another one is not read."""

SCHEMA = (
    "CREATE TABLE epochs (epoch INTEGER PRIMARY KEY, started TEXT, environment TEXT)",
    "CREATE TABLE changes (number INTEGER PRIMARY KEY, place TEXT, version INTEGER, key TEXT, "
    "fingerprint BLOB, kind TEXT, options TEXT, batches TEXT, segment INTEGER, answer TEXT, "
    "digest TEXT, epoch INTEGER, time TEXT, checksum BLOB, UNIQUE (place, version))",
    "CREATE UNIQUE INDEX keys ON changes (place, key) WHERE version IS NOT NULL",
)

INSERT = f"INSERT INTO changes ({', '.join(COLUMNS)}) VALUES ({', '.join('?' * len(COLUMNS))})"
EPOCHS = "SELECT epoch, started, environment FROM epochs"
SELECT = f"SELECT {', '.join(COLUMNS)} FROM changes"


class DatabaseDamaged(Exception):
    """SQLite, or a look at the schema, finds that the file is not a sound journal."""


class Journal:
    """The rows of all sessions. A session's rows are found by its place, see `SessionFolder`."""

    def __init__(self, file: Path, synchronous: str) -> None:
        """Open the database, made if missing, and check the whole of it.

        Args:
            file: the database.
            synchronous: SQLite's setting, `FULL` or `NORMAL`.

        Raises:
            DatabaseDamaged: it is not a sound journal.
            UnknownFormat: it is one of another version.
            sqlite3.Error: it cannot be read or written.
        """
        self._db = connect(file)
        try:
            self._prepare(synchronous)
        except BaseException as error:
            self._db.close()
            if _tells_damage(error, file):
                raise DatabaseDamaged(str(error)) from error
            raise

    def begin_epoch(self, environment: Mapping[str, str]) -> int:
        """Return a new epoch, one above the highest, and keep what computes in it."""
        text = json.dumps(dict(environment))
        query = "INSERT INTO epochs (started, environment) VALUES (?, ?)"
        with self._transaction("the epoch could not be written"):
            return int(self._db.execute(query, (now(), text)).lastrowid or 0)

    def epochs(self) -> dict[int, dict[str, str]]:
        """Return epoch -> what computed in it."""
        return {epoch: _environment(text) for epoch, _, text in self._db.execute(EPOCHS)}

    def add(self, place: str, changes: Sequence[Change], replacing_from: int | None = None) -> None:
        """Commit changes, all or none.

        Args:
            place: whose they are.
            changes: in order of their versions.
            replacing_from: forget what the journal has of this version and after it.

        Raises:
            JournalConflict: a version or a key is there already.
            StorageFailed: `broken` where it is unknown whether they are committed.
        """
        rows = [change_row(place, change) for change in changes]
        with self._transaction(f"a change of {place} could not be written"):
            if replacing_from is not None:
                since = (place, replacing_from)
                self._db.execute("DELETE FROM changes WHERE place = ? AND version >= ?", since)
            self._insert(rows)
            failpoints.reached("before_commit")
        failpoints.reached("after_commit")

    def add_failed(self, place: str, failed: Sequence[FailedChange], epoch: int) -> None:
        """Commit refused requests.

        Raises:
            StorageFailed: `broken` where it is unknown whether they are committed.
        """
        rows = [failed_row(place, one, epoch) for one in failed]
        with self._transaction(f"a refused request of {place} could not be written"):
            self._insert(rows)

    def holds_key(self, place: str, key: str, newest: int) -> bool:
        """Tell whether a change up to a version has a key."""
        query = "SELECT 1 FROM changes WHERE place = ? AND key = ? AND version <= ?"
        return self._db.execute(query, (place, key, newest)).fetchone() is not None

    def read(self, place: str) -> Journalled:
        """Return what is kept of a session."""
        return read_rows(self._db.execute(f"{SELECT} WHERE place = ? ORDER BY number", (place,)))

    def places(self) -> set[str]:
        """Return the places that rows are kept of."""
        return {place for (place,) in self._db.execute("SELECT DISTINCT place FROM changes")}

    def first_segment(self, place: str, version: int) -> int | None:
        """Return the first segment that the changes after a version refer to."""
        query = "SELECT MIN(segment) FROM changes WHERE place = ? AND version > ?"
        (segment,) = self._db.execute(query, (place, version)).fetchone()
        return None if segment is None else int(segment)

    def prune(self, place: str, version: int, newest: int) -> None:
        """Forget what is neither replayed nor remembered.

        Args:
            place: whose rows.
            version: the changes after it may be replayed.
            newest: the session's newest version; the `REMEMBERED` changes up to it stay.
        """
        with self._transaction(f"old changes of {place} could not be removed"):
            self._db.execute(
                "DELETE FROM changes WHERE place = ? AND version <= ?",
                (place, min(version, newest - REMEMBERED)),
            )
            self._db.execute(
                "DELETE FROM changes WHERE place = :place AND version IS NULL AND number <= "
                "(SELECT number FROM changes WHERE place = :place AND version IS NULL "
                "ORDER BY number DESC LIMIT 1 OFFSET :kept)",
                {"place": place, "kept": REMEMBERED},
            )

    def remove(self, place: str) -> None:
        """Forget a session."""
        with self._transaction(f"the changes of {place} could not be removed"):
            self._db.execute("DELETE FROM changes WHERE place = ?", (place,))

    def restore(self, rows: Sequence[Row], epochs: Sequence[tuple[int, str, str]]) -> None:
        """Take over what was saved from a damaged journal."""
        with self._transaction("what was saved of a damaged journal could not be written"):
            self._db.executemany(INSERT.replace("INSERT", "INSERT OR IGNORE"), rows)
            self._db.executemany("INSERT OR IGNORE INTO epochs VALUES (?, ?, ?)", epochs)
            # what is not known of an epoch must not let its number come again
            self._db.execute("INSERT OR IGNORE INTO epochs SELECT epoch, time, '{}' FROM changes")

    def copy_to(self, file: Path) -> None:
        """Write everything committed so far to another database.

        Raises:
            sqlite3.Error: it cannot be written.
        """
        with closing(sqlite3.connect(file)) as other:
            # a copy that a crash interrupts is worth nothing: it needs neither journal nor syncs
            other.execute("PRAGMA journal_mode = OFF")
            other.execute("PRAGMA synchronous = OFF")
            self._db.backup(other)

    def close(self) -> None:
        """Close the database."""
        self._db.close()

    def _prepare(self, synchronous: str) -> None:
        # exclusive: nobody else reads it, and there is no shared memory file to be mapped
        self._db.execute("PRAGMA locking_mode = EXCLUSIVE")
        self._db.execute("PRAGMA cell_size_check = ON")
        self._db.execute(f"PRAGMA synchronous = {synchronous}")
        self._db.execute("PRAGMA journal_mode = WAL")
        schema = tuple(
            sql
            for (sql,) in self._db.execute(
                "SELECT sql FROM sqlite_schema WHERE sql IS NOT NULL ORDER BY rowid"
            )
        )
        (version,) = self._db.execute("PRAGMA user_version").fetchone()
        if version == 0 and not schema:
            self._begin_database()
        elif version not in (0, FORMAT):
            raise UnknownFormat(f"the journal has format {version}, expected {FORMAT}")
        elif schema != SCHEMA:
            raise DatabaseDamaged("its tables are not those of a journal")
        (found,) = self._db.execute("PRAGMA integrity_check(1)").fetchone()
        if found != "ok":
            raise DatabaseDamaged(found)
        self._db.execute("BEGIN IMMEDIATE")  # refused where the file says that it is read-only
        self._db.execute("ROLLBACK")

    def _begin_database(self) -> None:
        with self._transaction("a journal could not be made"):
            for statement in SCHEMA:
                self._db.execute(statement)
            self._db.execute(f"PRAGMA user_version = {FORMAT}")

    def _insert(self, rows: Sequence[Row]) -> None:
        try:
            self._db.executemany(INSERT, rows)
        except sqlite3.IntegrityError as error:
            raise JournalConflict(f"the journal of {rows[0][0]} has it already: {error}") from error

    @contextmanager
    def _transaction(self, what: str) -> Iterator[None]:
        with refused(what, broken=False):
            self._db.execute("BEGIN IMMEDIATE")
            try:
                yield
            except BaseException:
                self._roll_back()
                raise
        with refused(f"{what}, or it was: the commit failed", broken=True):
            self._db.execute("COMMIT")

    def _roll_back(self) -> None:
        # SQLite rolls back by itself after some errors
        if self._db.in_transaction:
            with refused("a transaction could not be rolled back", broken=True):
                self._db.execute("ROLLBACK")


def connect(file: Path) -> sqlite3.Connection:
    """Return a connection that gives text back even where it is damaged and no UTF-8."""
    db = sqlite3.connect(file, isolation_level=None)
    db.text_factory = lambda raw: raw.decode(errors="surrogateescape")
    return db


def _environment(text: object) -> dict[str, str]:
    try:
        return dict(json.loads(str(text)))
    except (ValueError, TypeError):
        return {"unreadable": str(text)}  # told for information, no state depends on it


def _tells_damage(error: BaseException, file: Path) -> bool:
    """Tell an error about the file's content from one about the disk or the permissions."""
    if isinstance(error, UnicodeDecodeError):  # of SQLite's own message, which quotes the file
        return True
    primary = getattr(error, "sqlite_errorcode", None)
    if primary == sqlite3.SQLITE_READONLY:
        return os.access(file, os.W_OK)
    return primary is not None and primary & 0xFF not in (
        sqlite3.SQLITE_IOERR,
        sqlite3.SQLITE_FULL,
        sqlite3.SQLITE_CANTOPEN,
        sqlite3.SQLITE_PERM,
        sqlite3.SQLITE_BUSY,
        sqlite3.SQLITE_NOMEM,
        sqlite3.SQLITE_READONLY,
    )
