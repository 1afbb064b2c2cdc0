"""Where a session's current version is: on an executor's devices, parked, or lost with them."""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar

from curvserve_client.errors import SessionLost, UnknownSession, WorkersLost

from .executor import Executor, StateLost
from .pending import Pending
from .recovery import Restore
from .state import SessionState

log = logging.getLogger("curvserve.sessions")

T = TypeVar("T")

LOSSES = 3
"""Times in a row that a state may be lost under one request, before its caller is told."""


class Residence:
    """The current version of one session, which is brought to its devices when it is needed there.

    Attributes:
        state: the current version; the executor need not hold it.
        pending: the gradient that waits for its step.
        problems: what was found damaged or different when a version was made again.
    """

    def __init__(
        self, name: str, state: SessionState, executor: Executor, restore: Restore
    ) -> None:
        """Begin with a version that may be anywhere.

        Args:
            name: the session's.
            state: the version.
            executor: who has devices.
            restore: who makes a version again of what is stored.
        """
        self.state = state
        self.pending: Pending | None = None
        self.problems: tuple[str, ...] = ()
        self._name = name
        self._executor = executor
        self._restore = restore
        self._waking = asyncio.Lock()
        self._used = time.monotonic()
        self._given_up = False

    @property
    def is_parked(self) -> bool:
        """Whether no device holds it."""
        return not self._executor.holds(self.state)

    def is_unused(self, seconds: float) -> bool:
        """Tell whether devices hold it, and nothing was computed at it for so long."""
        return time.monotonic() - self._used >= seconds and not self.is_parked

    def park(self, state: SessionState) -> None:
        """Let go of the devices; what is kept is the same version, wherever that is."""
        self._executor.release(self.state)
        self.state = state

    def give_up(self) -> None:
        """Let go of the devices for good."""
        self._given_up = True
        self._executor.release(self.state)

    async def at(self, compute: Callable[[SessionState], Awaitable[T]]) -> T:
        """Have something computed at the current version, which is brought back where it is gone.

        Nothing that an executor computes changes anything, so what was lost can be done again.

        Args:
            compute: what is computed, perhaps several times.

        Raises:
            WorkersLost: the version was lost as often as `LOSSES`.
            SessionLost: what is stored is another version.
            UnknownSession: the session was deleted meanwhile.
        """
        for _ in range(LOSSES):
            self._used = time.monotonic()
            try:
                if self.is_parked:
                    async with self._waking:
                        if self.is_parked:
                            await self._wake()
                return await compute(self.state)
            except StateLost as lost:
                reason = lost
                log.warning("session %s: %s; its state is brought back", self._name, lost)
            finally:
                self._used = time.monotonic()
        raise WorkersLost(f"{LOSSES} times in a row: {reason}; the session is unchanged")

    async def _wake(self) -> None:
        version = self.state.version
        if self.state.is_elsewhere:
            state, pending, problems = await self._restore(self._name, self.pending)
        else:
            state = await self._executor.adopt(self.state, self._name)
            pending, problems = self.pending, ()
        if self._given_up:  # meanwhile
            self._executor.release(state)
            raise UnknownSession(f"no session is called {self._name!r}")
        if state.version != version:
            self._executor.release(state)
            message = f"its workers held version {version}; version {state.version} is stored"
            raise SessionLost(message)
        self.problems += tuple(problems)
        self.state, self.pending = state, pending
