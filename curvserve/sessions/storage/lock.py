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
        self._descriptor = os.open(folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            self._take(folder)
        except BaseException:
            os.close(self._descriptor)
            raise

    def release(self) -> None:
        """Let another process take the folder."""
        os.close(self._descriptor)

    def _take(self, folder: Path) -> None:
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            pid = os.pread(self._descriptor, 20, 0).strip()
            raise FolderInUse(folder, int(pid) if pid.isdigit() else None) from None
        os.ftruncate(self._descriptor, 0)
        os.pwrite(self._descriptor, f"{os.getpid()}\n".encode(), 0)
