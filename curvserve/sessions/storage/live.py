"""A session that lives in a data folder, as its store knows it."""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from .errors import JournalConflict
from .journal import Journal
from .records import (
    REMEMBERED,
    BatchRef,
    Change,
    CheckpointInfo,
    FailedChange,
    SessionRecord,
    Snapshot,
)
from .session_folder import SessionFolder
from .states import State, now

_KEPT = 2


@dataclass
class LiveSession:
    """A session that lives.

    Attributes:
        folder: its files.
        record: what it is.
        first_version: the version that it began at.
        version: its newest version.
        durable: the newest version that would be found again.
        lost: the version from which on the journal may have changes that cannot be replayed.
        checkpoints: its sound checkpoints, the oldest first.
        changes: at level `snapshot`, what the next snapshot brings into the journal.
        failed: what is not in the journal yet.
    """

    folder: SessionFolder
    record: SessionRecord
    first_version: int
    version: int
    durable: int
    lost: int | None = None
    checkpoints: list[CheckpointInfo] = field(default_factory=list)
    changes: deque[Change] = field(default_factory=lambda: deque(maxlen=REMEMBERED))
    failed: deque[FailedChange] = field(default_factory=lambda: deque(maxlen=REMEMBERED))

    @property
    def place(self) -> str:
        """What the journal calls it."""
        return self.folder.path.name

    def state(self, snapshot: Snapshot, epoch: int) -> State:
        """Return a snapshot with all that its file says."""
        return State(self.record, replace(snapshot, epoch=epoch), self.first_version, now())

    def check_next(self, change: Change) -> None:
        """Refuse a change that does not follow the newest.

        Raises:
            JournalConflict: its version is another.
        """
        if change.version != self.version + 1:
            raise JournalConflict(
                f"version {change.version} of {self.record.name!r} does not follow {self.version}"
            )

    def write_change(self, journal: Journal, change: Change) -> None:
        """Commit a change, and mark it as committed.

        Raises:
            JournalConflict: its key belongs to another change.
            StorageFailed: see `Journal.add` and `SessionFolder.mark`.
        """
        journal.add(self.place, [change], replacing_from=self.lost)
        self.lost = None
        self.folder.mark(change.version)
        self.durable = change.version

    def postpone_change(self, journal: Journal, change: Change) -> None:
        """Keep a change until the next snapshot.

        Raises:
            JournalConflict: its key belongs to another change.
        """
        waiting = any(change.key == other.key for other in self.changes)
        if waiting or journal.holds_key(self.place, change.key, self.version):
            raise JournalConflict(f"the key {change.key!r} belongs to another change")
        self.changes.append(change)

    def write_postponed(self, journal: Journal, version: int) -> None:
        """Commit the postponed changes up to a version."""
        ready = [change for change in self.changes if change.version <= version]
        if ready:
            journal.add(self.place, ready, replacing_from=self.lost)
            self.lost = None
        for _ in ready:
            self.changes.popleft()

    def write_failed(self, journal: Journal, epoch: int) -> None:
        """Commit the refused requests that are not in the journal yet."""
        if self.failed:
            journal.add_failed(self.place, self.failed, epoch)
        self.failed.clear()

    def forget_old(self, journal: Journal, pending: Sequence[BatchRef]) -> None:
        """Remove what neither the newest snapshots, nor a replay, nor a retry needs.

        Args:
            journal: where its changes are.
            pending: batches that a later change may refer to.
        """
        oldest = self.folder.keep_snapshots(_KEPT)
        journal.prune(self.place, oldest, self.version)
        needed = [ref.segment for ref in pending]
        first = journal.first_segment(self.place, oldest)
        self.folder.segments.remove_before(min([*needed, first or 2**63]))
