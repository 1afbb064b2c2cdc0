"""The store that keeps sessions in a data folder."""

import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from .backup import JOURNAL, UNFINISHED, Backup, begin_backup
from .errors import Damaged, JournalConflict, NameTaken, NotStored, StorageFailed, refused
from .files import make_folder, sync_folder
from .live import LiveSession
from .lock import FolderLock
from .opening import clear_away, open_session, tidy
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
from .recovery import recover_session
from .salvage import open_journal
from .session_folder import DELETED, NEW, SessionFolder, new_place
from .states import now


class FolderStore:
    """Keeps sessions in a folder that this process owns.

    Attributes:
        level: what an acknowledged change survives.
        folder: where they are kept.
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
        self.folder: Path | None = path
        self._sync = level is Level.FULL
        self._sessions: dict[str, LiveSession] = {}
        self._broken = ""
        self._folder = path / "sessions"
        with refused(f"the data folder {path} cannot be used", broken=True):
            make_folder(self._folder)
            self._lock = FolderLock(path)
            try:
                (path / UNFINISHED).unlink(missing_ok=True)
                self._journal, self._problems = open_journal(path / JOURNAL, level)
                self.epoch = self._journal.begin_epoch(environment)
                sync_folder(path)
                sync_folder(path.parent)
            except BaseException:
                self._lock.release()
                raise

    def recover(self) -> Recovered:
        """See `Store`."""
        with self._writing(), refused(f"{self._folder} could not be read", broken=True):
            found: list[Stored] = []
            problems = [*self._problems, *tidy(self._folder, self._journal)]
            for path in sorted(self._folder.glob("*@*")):
                try:
                    found.append(self._find_again(path))
                except Damaged as error:
                    problems.append(f"a session cannot be served: {error}")
            return Recovered(tuple(found), tuple(problems), self._journal.epochs())

    def create(self, record: SessionRecord, snapshot: Snapshot) -> int | None:
        """See `Store`."""
        check_name(record.name)
        self._check_free(record.name)
        place = new_place(record.name)
        with self._writing(), refused(f"{record.name!r} could not be created", broken=False):
            self._write_unborn(self._folder / (NEW + place), record, snapshot)
            self._rename(NEW + place, place)
            folder = SessionFolder(self._folder / place, self._sync)
        version = snapshot.version
        self._sessions[record.name] = LiveSession(folder, record, version, version, version)
        return version

    def append(self, session: str, parts: Sequence[memoryview]) -> BatchRef:
        """See `Store`; at level `snapshot` the batch is not kept."""
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
        found.check_next(change)
        change = replace(change, epoch=self.epoch, time=now())
        with self._writing(), refused(f"a change of {session!r} failed", broken=False):
            keep = found.write_change if self.level.journals else found.postpone_change
            keep(self._journal, change)
        found.version = change.version
        return found.durable

    def fail(self, session: str, failed: FailedChange) -> None:
        """See `Store`; at level `snapshot` it is kept with the next snapshot."""
        found = self._find(session)
        found.failed.append(replace(failed, time=now()))
        if self.level.journals:
            with self._writing():
                found.write_failed(self._journal, self.epoch)

    def snapshot(
        self, session: str, snapshot: Snapshot, pending: Sequence[BatchRef] = ()
    ) -> int | None:
        """See `Store`."""
        found = self._find(session)
        if snapshot.version > found.version:
            raise JournalConflict(f"version {snapshot.version} of {session!r} is not committed")
        with self._writing(), refused(f"a snapshot of {session!r} failed", broken=False):
            # keys first: a state whose keys are unknown would let a retry be taken twice
            found.write_postponed(self._journal, snapshot.version)
            found.write_failed(self._journal, self.epoch)
            found.folder.write_snapshot(found.state(snapshot, self.epoch))
            if not self.level.journals:
                found.folder.mark(snapshot.version)
            found.durable = max(found.durable, snapshot.version)
            found.forget_old(self._journal, pending)
        return found.durable

    def stored(self, session: str) -> Stored:
        """See `Store`."""
        found = self._find(session)
        with refused(f"{session!r} could not be read", broken=False):
            return recover_session(found.folder, self._journal.read(found.place)).stored

    def delete(self, session: str) -> None:
        """See `Store`."""
        place = self._find(session).place
        with self._writing(), refused(f"{session!r} could not be deleted", broken=False):
            self._rename(place, DELETED + place)
            del self._sessions[session]
            clear_away(self._folder / (DELETED + place), self._journal)

    def checkpoint(self, session: str, name: str, snapshot: Snapshot) -> CheckpointInfo:
        """See `Store`."""
        check_name(name)
        found = self._find(session)
        if found.folder.has_checkpoint(name):
            raise NameTaken(f"the session {session!r} has a checkpoint called {name!r}")
        with self._writing():
            state = found.state(snapshot, self.epoch)
            described = found.folder.write_checkpoint(name, state)
        found.checkpoints.append(described)
        return described

    def checkpoints(self, session: str) -> list[CheckpointInfo]:
        """See `Store`."""
        return list(self._find(session).checkpoints)

    def read_checkpoint(self, session: str, name: str) -> bytearray:
        """See `Store`."""
        folder = self._find(session).folder
        check_name(name)
        if not folder.has_checkpoint(name):
            raise NotStored(f"the session {session!r} has no checkpoint called {name!r}")
        return folder.read_checkpoint(name)

    def backup(self) -> Backup:
        """See `Store`."""
        with refused("a backup could not be begun", broken=False):
            return begin_backup(self._folder.parent, self._journal)

    def close(self) -> None:
        """See `Store`."""
        self._sessions.clear()
        self._broken = "the store was closed"
        self._journal.close()
        self._lock.release()

    def _find(self, session: str) -> LiveSession:
        if session not in self._sessions:
            raise NotStored(f"no session is called {session!r}")
        return self._sessions[session]

    def _find_again(self, path: Path) -> Stored:
        live, stored = open_session(path, self._journal, self._sync)
        if live.record.name in self._sessions:
            raise Damaged(path, 0, f"another folder holds a session {live.record.name!r}")
        self._sessions[live.record.name] = live
        return stored

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

    def _write_unborn(self, path: Path, record: SessionRecord, snapshot: Snapshot) -> None:
        try:
            unborn = SessionFolder(path, self._sync)
            version = snapshot.version
            live = LiveSession(unborn, record, version, version, version)
            unborn.write_snapshot(live.state(snapshot, self.epoch))
            sync_folder(path)
        except BaseException:
            shutil.rmtree(path, ignore_errors=True)  # else the next opening does it
            raise

    def _rename(self, old: str, new: str) -> None:
        os.replace(self._folder / old, self._folder / new)
        sync_folder(self._folder)
