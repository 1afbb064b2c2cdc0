"""The one interface behind which states are kept, on disk or not at all."""

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from .backup import Backup
from .records import (
    BatchRef,
    Change,
    CheckpointInfo,
    FailedChange,
    Level,
    Recovered,
    SessionRecord,
    Snapshot,
    Stored,
)


class Store(Protocol):
    """Keeps sessions; used from one thread, the one that made it; `MemoryStore.commit` from any.

    Every method is done when it returns. What writes raises `StorageFailed` where the disk refuses;
    after one with `broken` set, every further write raises it until the store is made anew.
    A session is named as its record names it; `NotStored` is raised where there is none.

    Attributes:
        level: what an acknowledged change survives.
        folder: where sessions are kept; None where they are not.
    """

    level: Level
    folder: Path | None

    def recover(self) -> Recovered:
        """Return all sessions as they are found; called once, before anything else."""
        ...

    def create(self, record: SessionRecord, snapshot: Snapshot) -> int | None:
        """Begin a session at its first state.

        Returns:
            The session's durable version, None where nothing is kept.

        Raises:
            NameTaken: a session of this name lives.
        """
        ...

    def append(self, session: str, parts: Sequence[memoryview]) -> BatchRef:
        """Keep a batch, given as the parts of its bytes; nothing refers to it yet."""
        ...

    def read(self, session: str, ref: BatchRef) -> bytearray:
        """Return a batch.

        Raises:
            Damaged: its bytes are not what was appended, or are gone.
        """
        ...

    def commit(self, session: str, change: Change) -> int | None:
        """Keep a change; its version is one above the session's newest.

        Returns:
            The session's durable version, None where nothing is kept.

        Raises:
            JournalConflict: the version does not follow, or the key belongs to another change.
        """
        ...

    def fail(self, session: str, failed: FailedChange) -> None:
        """Keep a refused request, which changed nothing."""
        ...

    def snapshot(
        self, session: str, snapshot: Snapshot, pending: Sequence[BatchRef] = ()
    ) -> int | None:
        """Keep the state of the newest version; what is older than the two newest states goes.

        Args:
            session: its name.
            snapshot: its state.
            pending: batches that no change refers to yet, and one may refer to later.

        Returns:
            The session's durable version, None where nothing is kept.
        """
        ...

    def stored(self, session: str) -> Stored:
        """Return what is kept of a session that lives, as `recover` would find it.

        Raises:
            NotStored: nothing is kept.
            Damaged: there is no sound state of it.
        """
        ...

    def delete(self, session: str) -> None:
        """End a session and remove all that is kept of it, its checkpoints too."""
        ...

    def checkpoint(self, session: str, name: str, snapshot: Snapshot) -> CheckpointInfo:
        """Keep a state under a name, for good.

        Raises:
            NameTaken: the session has a checkpoint of this name.
            ValueError: it is no name, see `check_name`.
        """
        ...

    def checkpoints(self, session: str) -> list[CheckpointInfo]:
        """Return the session's checkpoints, the oldest first."""
        ...

    def read_checkpoint(self, session: str, name: str) -> bytearray:
        """Return a checkpoint's file, checked; `decode_state` reads it.

        Raises:
            NotStored: there is no checkpoint of this name.
            Damaged: the file is not what was written.
        """
        ...

    def backup(self) -> Backup:
        """Return a copy of everything that is kept, as it is now; to be closed.

        Raises:
            NotStored: nothing is kept.
        """
        ...

    def close(self) -> None:
        """Give everything back; the store is not used again."""
        ...
