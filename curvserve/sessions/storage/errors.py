"""What can go wrong with a data folder."""

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


class StorageError(Exception):
    """Base of everything that storage raises on purpose."""


class FolderInUse(StorageError):
    """Another process owns the data folder.

    Attributes:
        folder: the folder.
        pid: the owner, where it said so.
    """

    def __init__(self, folder: Path, pid: int | None) -> None:
        """Say which folder, and who owns it."""
        owner = f"process {pid}" if pid else "another process"
        super().__init__(
            f"the data folder {folder} belongs to {owner}; stop it or choose another folder"
        )
        self.folder = folder
        self.pid = pid


class UnknownFormat(StorageError):
    """The data folder was written by a version that this one cannot read."""


class StorageFailed(StorageError):
    """The disk refused: what was asked for did not happen, or is not known to have happened.

    Attributes:
        broken: nothing more is written until the folder is opened again, because what the disk
            holds is no longer known; False where the store is as it was before the call.
    """

    def __init__(self, message: str, broken: bool) -> None:
        """Keep the message, and whether the store can go on."""
        super().__init__(message)
        self.broken = broken


class Damaged(StorageError):
    """A file does not hold what was written to it.

    Attributes:
        file: the file.
        offset: where in it the damaged part begins, in bytes.
    """

    def __init__(self, file: Path, offset: int, detail: str) -> None:
        """Say which file, where in it, and what is wrong there."""
        super().__init__(f"{file} is damaged at byte {offset}: {detail}")
        self.file = file
        self.offset = offset


class NameTaken(StorageError):
    """A session or a checkpoint of this name exists already."""


class NotStored(StorageError, LookupError):
    """There is no session or no checkpoint of this name."""


class JournalConflict(StorageError):
    """A change does not follow the session's newest, or its key has been used; nothing is kept."""


@contextmanager
def refused(what: str, broken: bool) -> Iterator[None]:
    """Tell what the system or SQLite refuses inside the block.

    Args:
        what: what did not happen, as the beginning of a sentence.
        broken: whether it is unknown afterwards what the disk holds.

    Raises:
        StorageFailed: in place of their errors.
    """
    try:
        yield
    except (OSError, sqlite3.Error) as error:
        raise StorageFailed(f"{what}: {error}", broken) from error
