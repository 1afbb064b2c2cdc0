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
        self._file = open(os.open(folder / "lock", os.O_RDWR | os.O_CREAT, 0o600), "r+b", 0)
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise FolderInUse(folder, self._owner()) from None
        self._file.truncate()
        self._file.write(f"{os.getpid()}\n".encode())

    def release(self) -> None:
        """Let another process take the folder."""
        self._file.close()

    def _owner(self) -> int | None:
        pid = self._file.read(20).strip()
        return int(pid) if pid.isdigit() else None
