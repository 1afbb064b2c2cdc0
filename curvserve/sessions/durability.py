"""What makes changes durable, off the event loop: a store, and the one thread that uses it."""

import asyncio
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

from curvserve_client import errors
from curvserve_client.wire import encode

from .machine import Ticket
from .snapshots import snapshot_of, without_rule_state
from .state import SessionState, Tensors
from .storage import (
    Backup,
    BatchRef,
    Change,
    CheckpointInfo,
    Damaged,
    FailedChange,
    Level,
    NameTaken,
    NotStored,
    Recovered,
    SessionRecord,
    Snapshot,
    StorageFailed,
    Store,
    Stored,
    digest,
)

T = TypeVar("T")

SNAPSHOT_EVERY = 256
"""Changes between two snapshots: what a restart has to replay at most."""


class Durability:
    """A store behind a thread of its own.

    Attributes:
        level: what an acknowledged change survives; known once it is open.
        snapshot_every: changes between two snapshots of a session.
    """

    level: Level

    def __init__(
        self,
        open_store: Callable[[], Store],
        to_host: Callable[[SessionState], Awaitable[SessionState]],
        snapshot_every: int = SNAPSHOT_EVERY,
    ) -> None:
        """Prepare; `open` or `recover` makes the store.

        Args:
            open_store: makes it, in the thread that will use it.
            to_host: brings a state to host memory.
            snapshot_every: changes between two snapshots of a session.
        """
        self.snapshot_every = snapshot_every
        self._open = open_store
        self._to_host = to_host
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="curvserve-storage")
        self._store: Store | None = None

    def open(self) -> None:
        """Make the store, in its thread, and wait for it.

        Raises:
            StorageError: it cannot be opened; the text says why.
        """
        self._store = self._thread.submit(self._open).result()
        self.level = self._store.level

    @property
    def folder(self) -> Path | None:
        """The data folder; None where nothing is kept, or it is not open."""
        return None if self._store is None else self._store.folder

    async def recover(self) -> Recovered:
        """Return what is in the store, which is opened now if it has not been.

        Raises:
            StorageError: it cannot be opened or read.
        """
        if self._store is None:
            await asyncio.to_thread(self.open)
        return await self._run(lambda store: store.recover())

    async def create(self, record: SessionRecord, state: SessionState) -> int | None:
        """Keep a session's first state; return its durable version, None where nothing is kept."""
        snapshot = await self._snapshot(state)
        return await self._run(lambda store: store.create(record, snapshot))

    async def append(self, session: str, batch: Tensors) -> BatchRef:
        """Keep a batch that a change may refer to."""
        return await self._run(lambda store: store.append(session, encode(batch)))

    async def read(self, session: str, batch: BatchRef) -> bytearray:
        """Return a batch's bytes."""
        return await self._run(lambda store: store.read(session, batch))

    async def commit(self, session: str, change: Change, state: SessionState) -> int | None:
        """Keep a change, and every so often a snapshot; return the session's durable version.

        Args:
            session: its name.
            change: what was done; its digest is filled in here.
            state: the state after it.

        Raises:
            StorageFailed: whether the change is kept is not known.
        """
        if self.level is Level.NONE:  # nothing is written, and so no other thread is waited for
            with _told(errors.UnknownSession):
                return self._opened.commit(session, change)
        due = change.version % self.snapshot_every == 0
        # where somebody else has told the digest, the tensors need not come here
        snapshot = await self._snapshot(state) if due or not state.digest else None

        def commit(store: Store) -> int | None:
            found = state.digest
            if snapshot is not None and not found and store.level.journals:
                found = digest(snapshot.tensors, snapshot.scalars)
            durable = store.commit(session, replace(change, digest=found))
            if snapshot is None or not due:
                return durable
            own = "" if state.digest else found  # another may be a digest of pieces
            return store.snapshot(session, replace(snapshot, digest=own))

        return await self._run(commit)

    async def fail(self, session: str, ticket: Ticket, problem: Mapping[str, str]) -> None:
        """Note a change that was begun and changed nothing."""
        failed = FailedChange(ticket.key, ticket.fingerprint, ticket.kind, problem)
        await self._run(lambda store: store.fail(session, failed))

    async def snapshot(
        self, session: str, state: SessionState, pending: Sequence[BatchRef] = ()
    ) -> int | None:
        """Keep a state whole, so that the next start has nothing to replay.

        Args:
            session: its name.
            state: its newest state.
            pending: batches that no change refers to yet, and one may refer to later.
        """
        snapshot = await self._snapshot(state)
        return await self._run(lambda store: store.snapshot(session, snapshot, pending))

    async def stored(self, session: str) -> Stored:
        """Return what is kept of a session that lives: what its state can be made of again.

        Raises:
            UnknownSession: nothing is.
        """
        return await self._run(lambda store: store.stored(session))

    async def delete(self, session: str) -> None:
        """Remove all that is kept of a session."""
        await self._run(lambda store: store.delete(session))

    async def checkpoint(
        self, session: str, name: str, state: SessionState, rule_state: bool
    ) -> CheckpointInfo:
        """Keep a state under a name, for good.

        Raises:
            InvalidRequest: the name cannot be one.
            CheckpointExists: the session has another of this name.
        """
        snapshot = await self._snapshot(state)
        if not rule_state:
            snapshot = without_rule_state(snapshot)
        return await self._run(lambda store: store.checkpoint(session, name, snapshot))

    async def checkpoints(self, session: str) -> list[CheckpointInfo]:
        """Return a session's checkpoints, the oldest first."""
        return await self._run(lambda store: store.checkpoints(session))

    async def read_checkpoint(self, session: str, name: str) -> bytearray:
        """Return a checkpoint's file.

        Raises:
            UnknownCheckpoint: there is none of this name.
        """
        absent = errors.UnknownCheckpoint
        return await self._run(lambda store: store.read_checkpoint(session, name), absent)

    async def backup(self) -> Backup:
        """Return a copy of everything that is kept, as it is between two changes; to be closed.

        Raises:
            NotFound: nothing is kept.
        """
        return await self._run(lambda store: store.backup(), errors.NotFound)

    def close(self) -> None:
        """Finish what is under way and close the store."""
        if self._store is not None:
            self._thread.submit(self._store.close).result()
        self._thread.shutdown()

    async def _snapshot(self, state: SessionState) -> Snapshot:
        return snapshot_of(await self._to_host(state))

    async def _run(
        self,
        call: Callable[[Store], T],
        absent: type[errors.ProblemError] = errors.UnknownSession,
    ) -> T:
        with _told(absent):
            loop = asyncio.get_running_loop()
            return await loop.run_in_executor(self._thread, call, self._opened)

    @property
    def _opened(self) -> Store:
        assert self._store is not None  # opened at the start of service
        return self._store


@contextmanager
def _told(absent: type[errors.ProblemError]) -> Iterator[None]:
    """Tell what a store raises as problems; `absent` where what was asked for is not there."""
    try:
        yield
    except NameTaken as error:
        raise errors.CheckpointExists(str(error)) from error
    except NotStored as error:
        raise absent(str(error)) from error
    except (StorageFailed, Damaged) as error:
        raise errors.StorageFailed(str(error)) from error
