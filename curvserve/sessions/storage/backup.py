"""A copy of the data folder at one moment, while it goes on being used."""

import os
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Self

from .journal import Journal
from .session_folder import MARK

JOURNAL = "journal.sqlite"
UNFINISHED = ".backup.sqlite"


@dataclass(frozen=True)
class BackupFile:
    """One file as it was at the moment of the backup.

    Attributes:
        name: where it lies in the folder.
        size: how long it was; an open segment may have grown since.
        file: it, open; it can be read after it has been removed.
    """

    name: str
    size: int
    file: BinaryIO


@dataclass
class Backup:
    """Everything that a data folder held at one moment; to be closed.

    Attributes:
        files: the journal first.
    """

    files: list[BackupFile] = field(default_factory=list)
    _open: ExitStack = field(default_factory=ExitStack)

    def add(self, name: str, path: Path) -> None:
        """Open a file, whose bytes up to its present end belong to the backup."""
        file = self._open.enter_context(path.open("rb", buffering=0))
        self.files.append(BackupFile(name, os.fstat(file.fileno()).st_size, file))

    def close(self) -> None:
        """Close the files."""
        self._open.close()

    def __enter__(self) -> Self:
        """Return the backup itself."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Close the files."""
        self.close()


def begin_backup(folder: Path, journal: Journal) -> Backup:
    """Return what a folder holds now; called where nobody writes to it meanwhile.

    Files are opened, not copied: segments only grow, snapshots and checkpoints never change, and
    what is removed later can still be read. The journal alone is copied.

    Args:
        folder: the data folder.
        journal: its journal.

    Raises:
        OSError: a file cannot be read, or too many are open.
        sqlite3.Error: the journal cannot be read.
    """
    backup = Backup()
    copy = folder / UNFINISHED
    try:
        copy.unlink(missing_ok=True)
        journal.copy_to(copy)
        backup.add(JOURNAL, copy)
        for path in _kept(folder / "sessions"):
            backup.add(path.relative_to(folder).as_posix(), path)
    except BaseException:
        backup.close()
        raise
    finally:
        copy.unlink(missing_ok=True)
    return backup


def _kept(sessions: Path) -> Iterator[Path]:
    """Yield the files of all sessions that never change; those with a dot are not finished."""
    for path in sorted(sessions.glob("[!.]*@*")):
        for file in sorted(path.rglob("[!.]*")):
            # the mark tells whether the journal has lost changes: one that was just copied has not
            if file.is_file() and file.name != MARK:
                yield file
