"""A collection of sessions over a store, for tests of the sessions without a server."""

import asyncio
import itertools
from collections.abc import Awaitable, Callable
from pathlib import Path

from curvserve_client.rules import Rule
from torch import Tensor

from curvserve.models import Model
from curvserve.sessions import (
    Account,
    Durability,
    Expectation,
    InlineExecutor,
    Request,
    Session,
    Sessions,
)
from curvserve.sessions.storage import FolderStore, Level, MemoryStore, Store
from tests.sessions.small import CPU, DROPPED, PLAIN, batch

ANY = Expectation()
_keys = itertools.count()


class Patient:
    """A caller that waits for an answer as long as it takes."""

    seconds = 600.0

    def __init__(self, account: Account | None = None) -> None:
        """Wait for an account's request; without one, for nobody's."""
        self.account = account or Account()

    async def gone(self) -> None:
        """Never return."""
        await asyncio.Event().wait()


def request(key: str = "", expected: Expectation = ANY, said: bytes = b"") -> Request:
    """Return a change's request; without a key, under a new one."""
    key = key or f"key {next(_keys)}"
    return Request(key, said or key.encode(), expected, Patient())


def exactly(*versions: int) -> Expectation:
    """Return the expectation of one of these versions."""
    return Expectation(frozenset(versions))


async def some_batch() -> dict[str, Tensor]:
    """Return what a caller sent."""
    return batch()


def folder(path: Path, level: Level = Level.FULL) -> Callable[[], Store]:
    """Return what opens a data folder."""
    return lambda: FolderStore(path, level, {"test": "yes"})


def with_sessions(
    test: Callable[[Sessions], Awaitable[None]],
    open_store: Callable[[], Store] = MemoryStore,
    *,
    models: tuple[Model, ...] = (PLAIN, DROPPED),
    snapshot_every: int = 256,
    closes: bool = True,
    queue: int = 32,
) -> None:
    """Run a test's coroutine with the sessions of a store.

    Args:
        test: the coroutine.
        open_store: opens the store.
        models: what is served.
        snapshot_every: changes between two snapshots.
        closes: whether the last states are kept in snapshots at the end, as a server does that is
            told to stop; otherwise they are left as kill -9 leaves them.
        queue: the capacity of each session.
    """

    async def run() -> None:
        recipes = {model.name: model for model in models}
        executor = InlineExecutor(recipes, dict.fromkeys(recipes, CPU))
        durability = Durability(open_store, executor.to_host, snapshot_every)
        sessions = Sessions(recipes, executor, durability, queue)
        try:
            await sessions.recover()
            await test(sessions)
            if closes:
                await sessions.finish(60.0)
                await sessions.close()
        finally:
            executor.close(60.0)
            durability.close()

    asyncio.run(run())


def with_session(
    test: Callable[[Session, Sessions], Awaitable[None]], rule: Rule | None = None
) -> None:
    """Run a test's coroutine with a fresh session and the collection that it is in."""

    async def run(sessions: Sessions) -> None:
        await test(await sessions.create("plain", rule, name="plain"), sessions)

    with_sessions(run)
