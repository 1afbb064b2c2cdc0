"""The store of level `none`."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from .backup import Backup
from .errors import Damaged, JournalConflict, NameTaken, NotStored
from .files import join
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
    check_name,
)
from .states import State, describe_checkpoint, encode_state, now


@dataclass
class _Session:
    record: SessionRecord
    first_version: int
    version: int
    checkpoints: dict[str, tuple[CheckpointInfo, bytearray]] = field(default_factory=dict)


class MemoryStore:
    """Keeps nothing but checkpoints, and those only as long as the process lives.

    Attributes:
        level: `none`.
        folder: None.
    """

    level = Level.NONE
    folder: Path | None = None

    def __init__(self) -> None:
        """Begin empty."""
        self._sessions: dict[str, _Session] = {}

    def recover(self) -> Recovered:
        """See `Store`; there is never anything."""
        return Recovered()

    def create(self, record: SessionRecord, snapshot: Snapshot) -> int | None:
        """See `Store`."""
        check_name(record.name)
        if record.name in self._sessions:
            raise NameTaken(f"a session called {record.name!r} exists")
        self._sessions[record.name] = _Session(record, snapshot.version, snapshot.version)
        return None

    def append(self, session: str, parts: Sequence[memoryview]) -> BatchRef:
        """See `Store`; the batch is not kept."""
        self._find(session)
        return BatchRef(0, 0, sum(part.nbytes for part in parts), 0)

    def read(self, session: str, ref: BatchRef) -> bytearray:
        """See `Store`; always refused."""
        self._find(session)
        raise Damaged(Path("memory"), ref.offset, "no batches are kept at level none")

    def commit(self, session: str, change: Change) -> int | None:
        """See `Store`; a key that is used twice is not noticed."""
        found = self._find(session)
        if change.version != found.version + 1:
            raise JournalConflict(
                f"version {change.version} of {session!r} does not follow {found.version}"
            )
        found.version = change.version
        return None

    def fail(self, session: str, failed: FailedChange) -> None:
        """See `Store`; the request is not kept."""
        self._find(session)

    def snapshot(
        self, session: str, snapshot: Snapshot, pending: Sequence[BatchRef] = ()
    ) -> int | None:
        """See `Store`; the state is not kept."""
        self._find(session)
        return None

    def stored(self, session: str) -> Stored:
        """See `Store`; always refused."""
        self._find(session)
        raise NotStored("nothing is kept at level none")

    def delete(self, session: str) -> None:
        """See `Store`."""
        self._find(session)
        del self._sessions[session]

    def checkpoint(self, session: str, name: str, snapshot: Snapshot) -> CheckpointInfo:
        """See `Store`."""
        check_name(name)
        found = self._find(session)
        if name in found.checkpoints:
            raise NameTaken(f"the session {session!r} has a checkpoint called {name!r}")
        state = State(found.record, snapshot, found.first_version, now())
        body = join(encode_state(state))
        described = describe_checkpoint(body, Path(f"{name}.safetensors"))
        found.checkpoints[name] = (described, body)
        return described

    def checkpoints(self, session: str) -> list[CheckpointInfo]:
        """See `Store`."""
        return [described for described, _ in self._find(session).checkpoints.values()]

    def read_checkpoint(self, session: str, name: str) -> bytearray:
        """See `Store`."""
        checkpoints = self._find(session).checkpoints
        if name not in checkpoints:
            raise NotStored(f"the session {session!r} has no checkpoint called {name!r}")
        return bytearray(checkpoints[name][1])

    def backup(self) -> Backup:
        """See `Store`."""
        raise NotStored("this server has no data folder, so there is nothing to be backed up")

    def close(self) -> None:
        """See `Store`."""
        self._sessions.clear()

    def _find(self, session: str) -> _Session:
        if session not in self._sessions:
            raise NotStored(f"no session is called {session!r}")
        return self._sessions[session]
