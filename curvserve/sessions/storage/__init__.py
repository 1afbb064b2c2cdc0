"""Where sessions are kept: batches in segment files, changes in SQLite, states as safetensors.

Nothing here knows HTTP, event loops or how a step is computed. `open_store` gives the one object
that the sessions talk to; docs/data-folder.md says what lies where and what survives what.
"""

from collections.abc import Mapping
from pathlib import Path

from .backup import Backup, BackupFile
from .digest import digest
from .errors import (
    Damaged,
    FolderInUse,
    JournalConflict,
    NameTaken,
    NotStored,
    StorageError,
    StorageFailed,
    UnknownFormat,
)
from .folder import FolderStore
from .memory import MemoryStore
from .records import (
    REMEMBERED,
    RULE,
    Answered,
    BatchRef,
    Change,
    CheckpointInfo,
    FailedChange,
    Level,
    Recovered,
    SessionRecord,
    Snapshot,
    Stored,
    check_name,
)
from .states import State, decode_state, encode_state
from .store import Store

__all__ = [
    "REMEMBERED",
    "RULE",
    "Answered",
    "Backup",
    "BackupFile",
    "BatchRef",
    "Change",
    "CheckpointInfo",
    "Damaged",
    "FailedChange",
    "FolderInUse",
    "FolderStore",
    "JournalConflict",
    "Level",
    "MemoryStore",
    "NameTaken",
    "NotStored",
    "Recovered",
    "SessionRecord",
    "Snapshot",
    "State",
    "StorageError",
    "StorageFailed",
    "Store",
    "Stored",
    "UnknownFormat",
    "check_name",
    "decode_state",
    "digest",
    "encode_state",
    "open_store",
]


def open_store(path: Path, level: Level, environment: Mapping[str, str]) -> Store:
    """Return the store of a level; at `none` the folder is not touched.

    Args:
        path: the data folder, made if missing.
        level: what an acknowledged change survives.
        environment: what computes in this epoch: version of torch, device, number of threads.

    Raises:
        FolderInUse: another process has the folder.
        UnknownFormat: the folder was written by another version.
        StorageFailed: the disk refuses.
    """
    return MemoryStore() if level is Level.NONE else FolderStore(path, level, environment)
