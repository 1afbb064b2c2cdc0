"""Where sessions are kept: batches in segment files, changes in SQLite, states as safetensors.

Nothing here knows HTTP, event loops or how a step is computed. `open_store` gives the one object
that the sessions talk to; docs/data-folder.md says what lies where and what survives what.
"""

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
    "BatchRef",
    "Change",
    "CheckpointInfo",
    "Damaged",
    "FailedChange",
    "FolderInUse",
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
]
