"""The store that keeps sessions in a data folder."""

import os
import shutil
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

from .errors import Damaged, JournalConflict, NameTaken, NotStored, StorageFailed, refused
from .files import make_folder, sync_folder
from .lock import FolderLock
from .records import (
    REMEMBERED,
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
from .recovery import recover_session
from .salvage import open_journal
from .session_folder import DELETED, NEW, SessionFolder, new_place
from .states import State, now

_KEPT = 2


@dataclass
class _Session:
    """A session that lives.

    Attributes:
        folder: its files.
        record: what it is.
        first_version: the version that it began at.
        version: its newest version.
        durable: the newest version that would be found again.
        lost: whether the journal has changes after `version`, which can no longer be replayed.
        checkpoints: its sound checkpoints, the oldest first.
        changes: at level `snapshot`, what the next snapshot brings into the journal.
        failed: likewise.
    """

    folder: SessionFolder
    record: SessionRecord
    first_version: int
    version: int
    durable: int
    lost: bool = False
    checkpoints: list[CheckpointInfo] = field(default_factory=list)
    changes: deque[Change] = field(default_factory=lambda: deque(maxlen=REMEMBERED))
    failed: deque[FailedChange] = field(default_factory=lambda: deque(maxlen=REMEMBERED))

    @property
    def place(self) -> str:
        return self.folder.path.name


class FolderStore:
    """Keeps sessions in a folder that this process owns.

    Attributes:
        level: what an acknowledged change survives.
        epoch: counts the openings of the folder.
    """

    def __init__(self, path: Path, level: Level, environment: Mapping[str, str]) -> None:
        """Take the folder, made if missing, and begin an epoch.

        Args:
            path: the folder.
            level: any but `none`.
            environment: what computes in this epoch: version of torch, device, number of threads.

        Raises:
            FolderInUse: another process has it.
            UnknownFormat: it was written by another version.
            StorageFailed: the disk refuses.
        """
        self.level = level
        self._sessions: dict[str, _Session] = {}
        self._broken = ""
        self._folder = path / "sessions"
        with refused(f"the data folder {path} cannot be used", broken=True):
            make_folder(self._folder)
            self._lock = FolderLock(path)
            try:
                self._journal, self._problems = open_journal(path / "journal.sqlite", level)
                self.epoch = self._journal.begin_epoch(environment)
                sync_folder(path)
                sync_folder(path.parent)
            except BaseException:
                self._lock.release()
                raise

    def recover(self) -> Recovered:
        """See `Store`."""
        with self._writing(), refused(f"{self._folder} could not be read", broken=True):
            problems = [*self._problems, *self._tidy()]
            found = []
            for path in sorted(self._folder.glob("*@*")):
                try:
                    found.append(self._open_session(path))
                except Damaged as error:
                    problems.append(f"a session cannot be served: {error}")
            return Recovered(tuple(found), tuple(problems), self._journal.epochs())

    def create(self, record: SessionRecord, snapshot: Snapshot) -> int | None:
        """See `Store`."""
        check_name(record.name)
        self._check_free(record.name)
        place = new_place(record.name)
        state = self._state(record, snapshot.version, snapshot)
        with self._writing(), refused(f"{record.name!r} could not be created", broken=False):
            self._write_unborn(self._folder / (NEW + place), state)
            self._rename(NEW + place, place)
        folder = SessionFolder(self._folder / place, self.level is Level.FULL)
        self._sessions[record.name] = _Session(
            folder, record, snapshot.version, snapshot.version, snapshot.version
        )
        return snapshot.version

    def append(self, session: str, parts: Sequence[memoryview]) -> BatchRef:
        """See `Store`."""
        found = self._find(session)
        if not self.level.journals:
            return BatchRef(0, 0, sum(part.nbytes for part in parts), 0)
        with self._writing():
            return found.folder.segments.append(parts)

    def read(self, session: str, ref: BatchRef) -> bytearray:
        """See `Store`."""
        return self._find(session).folder.segments.read(ref)

    def commit(self, session: str, change: Change) -> int | None:
        """See `Store`."""
        found = self._find(session)
        if change.version != found.version + 1:
            raise JournalConflict(
                f"version {change.version} of {session!r} does not follow {found.version}"
            )
        change = replace(change, epoch=self.epoch, time=now())
        with self._writing():
            if self.level.journals:
                self._journal.add(found.place, [change], replacing=found.lost)
                found.folder.mark(change.version)
                found.lost, found.durable = False, change.version
            else:
                self._postpone(found, change)
        found.version = change.version
        return found.durable

    def fail(self, session: str, failed: FailedChange) -> None:
        """See `Store`."""
        found = self._find(session)
        found.failed.append(replace(failed, time=now()))
        if self.level.journals:
            with self._writing():
                self._write_failed(found)

    def snapshot(
        self, session: str, snapshot: Snapshot, pending: Sequence[BatchRef] = ()
    ) -> int | None:
        """See `Store`."""
        found = self._find(session)
        if snapshot.version > found.version:
            raise JournalConflict(f"version {snapshot.version} of {session!r} is not committed")
        with self._writing(), refused(f"a snapshot of {session!r} failed", broken=False):
            # keys first: a state whose keys are unknown would let a retry be taken twice
            self._write_postponed(found, snapshot.version)
            self._write_failed(found)
            found.folder.write_snapshot(self._state(found.record, found.first_version, snapshot))
            if not self.level.journals:
                found.folder.mark(snapshot.version)
            found.durable = max(found.durable, snapshot.version)
            self._forget_old(found, pending)
        return found.durable

    def delete(self, session: str) -> None:
        """See `Store`."""
        place = self._find(session).place
        with self._writing(), refused(f"{session!r} could not be deleted", broken=False):
            self._rename(place, DELETED + place)
            del self._sessions[session]
            self._clear_away(self._folder / (DELETED + place))

    def checkpoint(self, session: str, name: str, snapshot: Snapshot) -> CheckpointInfo:
        """See `Store`."""
        check_name(name)
        found = self._find(session)
        if found.folder.has_checkpoint(name):
            raise NameTaken(f"the session {session!r} has a checkpoint called {name!r}")
        with self._writing():
            state = self._state(found.record, found.first_version, snapshot)
            described = found.folder.write_checkpoint(name, state)
        found.checkpoints.append(described)
        return described

    def checkpoints(self, session: str) -> list[CheckpointInfo]:
        """See `Store`."""
        return list(self._find(session).checkpoints)

    def read_checkpoint(self, session: str, name: str) -> bytearray:
        """See `Store`."""
        folder = self._find(session).folder
        if not folder.has_checkpoint(name):
            raise NotStored(f"the session {session!r} has no checkpoint called {name!r}")
        return folder.read_checkpoint(name)

    def close(self) -> None:
        """See `Store`."""
        self._sessions.clear()
        self._broken = "the store was closed"
        self._journal.close()
        self._lock.release()

    def _find(self, session: str) -> _Session:
        if session not in self._sessions:
            raise NotStored(f"no session is called {session!r}")
        return self._sessions[session]

    def _check_free(self, name: str) -> None:
        # a session that could not be served still has its folder, and keeps its name
        if next(self._folder.glob(f"{name}@*"), None):
            raise NameTaken(f"a session called {name!r} is kept in {self._folder}")

    @contextmanager
    def _writing(self) -> Iterator[None]:
        if self._broken:
            raise StorageFailed(f"nothing is written any more: {self._broken}", broken=True)
        try:
            yield
        except StorageFailed as error:
            self._broken = str(error) if error.broken else ""
            raise

    def _state(self, record: SessionRecord, first_version: int, snapshot: Snapshot) -> State:
        return State(record, replace(snapshot, epoch=self.epoch), first_version, now())

    def _write_unborn(self, path: Path, state: State) -> None:
        try:
            SessionFolder(path, sync=False).write_snapshot(state)
            sync_folder(path)
        except BaseException:
            shutil.rmtree(path, ignore_errors=True)  # else the next opening does it
            raise

    def _rename(self, old: str, new: str) -> None:
        os.replace(self._folder / old, self._folder / new)
        sync_folder(self._folder)

    def _postpone(self, found: _Session, change: Change) -> None:
        waiting = any(change.key == other.key for other in found.changes)
        if waiting or self._journal.holds_key(found.place, change.key):
            raise JournalConflict(f"the key {change.key!r} belongs to another change")
        found.changes.append(change)

    def _write_postponed(self, found: _Session, version: int) -> None:
        ready = [change for change in found.changes if change.version <= version]
        if ready:
            self._journal.add(found.place, ready, replacing=found.lost)
            found.lost = False
        for _ in ready:
            found.changes.popleft()

    def _write_failed(self, found: _Session) -> None:
        if found.failed:
            self._journal.add_failed(found.place, found.failed, self.epoch)
        found.failed.clear()

    def _forget_old(self, found: _Session, pending: Sequence[BatchRef]) -> None:
        oldest = found.folder.keep_snapshots(_KEPT)
        self._journal.prune(found.place, oldest, found.version)
        needed = [ref.segment for ref in pending]
        first = self._journal.first_segment(found.place, oldest)
        found.folder.segments.remove_before(min([*needed, first or 2**63]))

    def _tidy(self) -> list[str]:
        """Finish creations and deletions that a crash interrupted."""
        for path in self._folder.glob(f"{NEW}*"):
            shutil.rmtree(path)
        for path in self._folder.glob(f"{DELETED}*"):
            self._clear_away(path)
        gone = self._journal.places() - {path.name for path in self._folder.glob("*@*")}
        for place in gone:
            self._journal.remove(place)
        return [f"the journal had changes of {place}, whose folder is gone" for place in gone]

    def _clear_away(self, path: Path) -> None:
        self._journal.remove(path.name.removeprefix(DELETED))
        shutil.rmtree(path)

    def _open_session(self, path: Path) -> Stored:
        folder = SessionFolder(path, self.level is Level.FULL)
        recovery = recover_session(folder, self._journal.read(path.name))
        stored = recovery.stored
        if stored.record.name in self._sessions:
            raise Damaged(path, 0, f"another folder holds a session {stored.record.name!r}")
        checkpoints, problems = _checkpoints(folder)
        self._sessions[stored.record.name] = _Session(
            folder,
            stored.record,
            recovery.first_version,
            stored.version,
            stored.version,
            recovery.lost,
            checkpoints,
        )
        return replace(stored, problems=(*stored.problems, *problems))


def _checkpoints(folder: SessionFolder) -> tuple[list[CheckpointInfo], list[str]]:
    found, problems = [], []
    for name in folder.checkpoint_names():
        try:
            found.append(folder.describe_checkpoint(name))
        except Damaged as error:
            problems.append(f"a checkpoint cannot be read: {error}")
    return sorted(found, key=lambda described: described.created), problems
