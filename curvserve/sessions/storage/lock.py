"""One process owns a data folder."""

import fcntl
import os
from pathlib import Path

from .errors import FolderInUse


class FolderLock:
    """Held from its making until `release`, or the end of the process however it ends."""

    def __init__(self, folder: Path) -> None:
        """Take the folder.

        Raises:
            FolderInUse: another process, or another store of this one, has it.
            OSError: the folder cannot be used.
        """
        descriptor = os.open(folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        self._file = os.fdopen(descriptor, "r+b", buffering=0)
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            owner = self._owner()
            self._file.close()
            if isinstance(error, BlockingIOError):
                raise FolderInUse(folder, owner) from None
            raise
        self._file.truncate()
        self._file.write(f"{os.getpid()}\n".encode())

    def release(self) -> None:
        """Let another process take the folder."""
        self._file.close()

    def _owner(self) -> int | None:
        pid = self._file.read(20).strip()
        return int(pid) if pid.isdigit() else None
