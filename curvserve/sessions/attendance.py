"""Work that somebody waits for, who may lose patience or leave."""

import asyncio
import logging
from collections.abc import Coroutine
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

from curvserve_client.errors import CurvserveError, DeadlineExceeded, Draining

from .account import Account
from .machine import Expectation, Machine, Stage, Ticket

log = logging.getLogger("curvserve.sessions")

T = TypeVar("T")

_UNCHANGED = "the session is unchanged"


class Caller(Protocol):
    """The one who waits for an answer."""

    @property
    def seconds(self) -> float:
        """How long the answer may take."""

    @property
    def account(self) -> Account:
        """Whose requests this one is counted among."""

    async def gone(self) -> None:
        """Return once nobody waits any more."""


class CallerGone(Exception):
    """Nobody waits for the answer any more; the work was dropped, or goes on unattended."""


@dataclass(frozen=True)
class Request:
    """What every request that changes a session says of itself.

    Attributes:
        key: its idempotency key.
        fingerprint: a digest of the whole request.
        expectation: the versions that it may be applied to.
        caller: who waits for the answer.
    """

    key: str
    fingerprint: bytes
    expectation: Expectation
    caller: Caller


class Attendance:
    """The admitted requests of one session, each a task of its own beside the one that waits.

    A caller that leaves before its request's turn takes the request with it; after that the work is
    finished all the same. A deadline that passes keeps the work's result from being applied, and
    the work its place in the queue until it has really ended.
    """

    def __init__(self, session: str, machine: Machine) -> None:
        """Begin with nothing.

        Args:
            session: the session's name, for the log.
            machine: the session's state machine.
        """
        self._session = session
        self._machine = machine
        self._tasks: dict[asyncio.Task[Any], tuple[Ticket, asyncio.Task[None]]] = {}

    async def attend(self, ticket: Ticket, work: Coroutine[Any, Any, T], caller: Caller) -> T:
        """Return what work comes to, if its caller waits for it as long as that takes.

        Args:
            ticket: the admitted request; the work ends it.
            work: what is to be done.
            caller: who waits.

        Raises:
            DeadlineExceeded: the caller's time has passed.
            Draining: the server stopped before the work had ended.
            CallerGone: the caller has left.
        """
        task = asyncio.create_task(work)
        gone = asyncio.create_task(caller.gone())
        self._tasks[task] = ticket, gone
        task.add_done_callback(self._tasks.pop)
        try:
            await asyncio.wait({task, gone}, timeout=caller.seconds, return_when="FIRST_COMPLETED")
            if not task.done():
                self._let_go(ticket, task, gone, caller.seconds)
            return await asyncio.shield(task)
        except asyncio.CancelledError:  # of who waits, at the end of the server
            if not self._take_back(ticket, task):
                return await asyncio.shield(task)
            raise Draining(f"the server stopped before the request's end; {_UNCHANGED}") from None
        finally:
            gone.cancel()
            if not task.done():
                task.add_done_callback(self._unattended)

    async def idle(self) -> None:
        """Return once no request is left."""
        while self._tasks:
            await asyncio.wait(self._tasks)

    def withdraw(self) -> None:
        """Give up every request that has not ended, and have its caller told."""
        for _, gone in self._tasks.values():
            gone.cancel()

    def _let_go(
        self, ticket: Ticket, task: asyncio.Task[Any], gone: asyncio.Task[None], seconds: float
    ) -> None:
        """Give up work that is waited for no longer; return where it is too late for that."""
        stage, stopped = ticket.stage, gone.cancelled()  # see `withdraw`
        left = gone.done() and not stopped
        if left and stage is not Stage.QUEUED:
            raise CallerGone
        taken_back = self._take_back(ticket, task)
        if left:
            raise CallerGone
        if taken_back:
            what = "waited for its turn" if stage is Stage.QUEUED else "was being computed"
            if stopped:
                raise Draining(f"the server stopped while the request {what}; {_UNCHANGED}")
            raise DeadlineExceeded(f"the request {what} for {seconds:g} s; {_UNCHANGED}")

    def _take_back(self, ticket: Ticket, task: asyncio.Task[Any]) -> bool:
        """Keep work from being applied; False where it is too late for that."""
        stage = self._machine.abandon(ticket)
        if stage is Stage.QUEUED:
            task.cancel()
        return stage in (Stage.QUEUED, Stage.RUNNING)

    def _unattended(self, task: asyncio.Task[Any]) -> None:
        """Tell the log how work ended that nobody waited for."""
        error = None if task.cancelled() else task.exception()
        if isinstance(error, CurvserveError):
            log.info("session %s: unattended work was refused: %s", self._session, error)
        elif error is not None:
            log.error("session %s: unattended work failed", self._session, exc_info=error)
