"""All sessions of a server: begun, found again after a restart, ended."""

import asyncio
import logging
import math
from collections.abc import Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any

from curvserve_client.errors import (
    Draining,
    InvalidRequest,
    ProblemError,
    SessionExists,
    StorageFailed,
    UnknownCheckpoint,
    UnknownModel,
    UnknownSession,
)
from curvserve_client.rules import Rule, make_rule, rule_options

from ..models import Model
from ..models.model import NAME, NAME_EXPECTED
from .account import Account
from .durability import Durability
from .events import Events
from .executor import Executor, StateLost
from .machine import Machine, Receipt
from .observer import Observer, make_thread
from .recovery import CannotRecover, Recovery
from .replica import initial_tensors
from .session import Session
from .snapshots import state_of, without_rule_state
from .state import SessionState
from .storage import SessionRecord, Stored, decode_state

log = logging.getLogger("curvserve.sessions")


class Sessions:
    """Sessions by name.

    Attributes:
        models: name -> recipe of every model that is served.
        events: what happens in all of them.
        problems: what was found damaged at the start, in sentences.
    """

    def __init__(
        self,
        models: Mapping[str, Model],
        executor: Executor,
        durability: Durability,
        queue: int = 32,
    ) -> None:
        """Begin without sessions; `recover` brings back those of an earlier process.

        Args:
            models: name -> recipe.
            executor: who computes for all of them.
            durability: who keeps them.
            queue: requests of one session that may wait or be computed at a time.
        """
        self.models = models
        self.events = Events()
        self.problems: list[str] = []
        self._executor = executor
        self._durability = durability
        self._queue = queue
        self._recovery = Recovery(models, executor, durability, {})
        self._observing = make_thread()
        self._sessions: dict[str, Session] = {}
        self._reserved: dict[str, str] = {}  # name -> its owner
        self._draining = False
        self._end = math.inf

    async def recover(self) -> None:
        """Open the store and bring back every session that it holds.

        A session that cannot be served is told of in `problems`; what is stored of it stays, and so
        does its name.

        Raises:
            StorageError: the store cannot be opened.
        """
        found = await self._durability.recover()
        self.problems += found.problems
        self._recovery = Recovery(self.models, self._executor, self._durability, found.epochs)
        for stored in found.sessions:
            name = stored.record.name
            try:
                state, differences = await self._recovered_state(stored)
            except (CannotRecover, ProblemError) as error:
                self._reserved[name] = ""  # which its owner could not end
                self.problems.append(f"session {name}: {error}; it is kept, and not served")
            else:
                self._sessions[name] = self._recovered(stored, state, differences)
        for problem in self.problems:
            log.error("%s", problem)

    async def _recovered_state(self, stored: Stored) -> tuple[SessionState, list[str]]:
        if self._executor.lends:  # there may be more sessions than devices
            return await self._recovery.outline(stored), []
        return await self._recovery.state(stored)

    async def create(
        self,
        model: str,
        rule: Rule | None = None,
        seed: int | None = None,
        name: str = "",
        from_checkpoint: str = "",
        account: Account | None = None,
    ) -> Session:
        """Begin a session: at version 0, or where a checkpoint was.

        Args:
            model: name of its model.
            rule: its update rule; None for the checkpoint's, or the default.
            seed: what its initial parameters and draws come from; None for the checkpoint's, or 0.
            name: what to call it; empty for the first free `<model>-<number>`.
            from_checkpoint: `<session>/<checkpoint>`; empty to draw the parameters from the seed.
            account: who begins it; None for the server itself.

        Raises:
            UnknownModel: this server does not serve the model.
            InvalidRequest: the name is not 1 to 64 letters, digits, dots, dashes, underscores; or
                the checkpoint is of another model.
            SessionExists: the name is taken.
            QuotaExceeded: the account has as many sessions as it may have.
            UnknownCheckpoint: there is no such checkpoint.
            InvalidRule: the rule does not fit the model.
            StorageFailed: it could not be written.
        """
        self.find_model(model)
        if self._draining:
            raise Draining("the server is stopping and takes no new work")
        name = name or self._free_name(model)
        self._check_name(name)
        account = account or Account()
        account.check_sessions(self.count(account.name))
        self._reserved[name] = account.name
        try:
            state = await self._first_state(model, rule, seed, from_checkpoint)
            if not self._executor.lends:
                state = await self._executor.adopt(state, name)
            record = _record(name, state, account.name)
            durable = await self._durability.create(record, state)
            machine = Machine(state.version, durable, capacity=self._queue)
            self._sessions[name] = self._session(record, state, machine)
        finally:
            del self._reserved[name]
        self.events.publish("created", session=name, model=model, version=state.version)
        return self._sessions[name]

    def find_model(self, name: str) -> Model:
        """Return a served model.

        Raises:
            UnknownModel: this server does not serve it.
        """
        if name not in self.models:
            known = ", ".join(self.models)
            raise UnknownModel(f"no model is called {name!r}; served here: {known}", expected=known)
        return self.models[name]

    def find(self, name: str) -> Session:
        """Return a session.

        Raises:
            UnknownSession: there is none of this name.
        """
        if name not in self._sessions:
            raise UnknownSession(f"no session is called {name!r}")
        return self._sessions[name]

    def get(self, name: str) -> Session | None:
        """Return a session, or None where there is none of this name."""
        return self._sessions.get(name)

    def is_free(self, name: str) -> bool:
        """Tell whether no session has a name, served or kept."""
        return name not in self._sessions and name not in self._reserved

    def count(self, owner: str) -> int:
        """Return how many sessions an API key has begun: live, being begun, or being ended."""
        served = sum(session.record.owner == owner for session in self._sessions.values())
        return served + sum(each == owner for each in self._reserved.values())

    def list(self) -> list[Session]:
        """Return all sessions, the oldest first."""
        return list(self._sessions.values())

    async def delete(self, name: str) -> None:
        """End a session at once; a change under way is not applied any more.

        Raises:
            UnknownSession: there is none of this name.
        """
        session = self.find(name)
        del self._sessions[name]
        self._reserved[name] = session.record.owner  # until its files are gone
        try:
            await session.delete()
        finally:
            del self._reserved[name]

    async def park(self, seconds: float) -> None:
        """Have sessions let go of devices that have been idle for long; runs until cancelled.

        Args:
            seconds: how long.
        """
        while self._executor.lends:
            await asyncio.sleep(min(10.0, seconds / 4))
            for session in self.list():
                try:
                    await session.park(seconds)
                except (ProblemError, StateLost) as error:  # the next request does what it can
                    log.error("session %s: it was not parked: %s", session.name, error)

    def drain(self) -> None:
        """Admit nothing more; what is admitted goes on."""
        self._draining = True
        for session in self._sessions.values():
            session.drain()

    async def finish(self, seconds: float) -> None:
        """Let admitted work end, drop what has not ended by then, and let every watcher go.

        Args:
            seconds: how long the admitted work may take, from the first call.
        """
        self.drain()
        sessions = self.list()
        now = asyncio.get_running_loop().time()
        self._end = min(self._end, now + seconds)
        with suppress(TimeoutError):
            async with asyncio.timeout_at(self._end):
                await asyncio.gather(*(session.idle() for session in sessions))
        for session in sessions:
            session.withdraw()
        self.events.close()
        await asyncio.to_thread(self._observing.shutdown)

    async def close(self) -> None:
        """Keep the last state of every session in a snapshot."""
        for session in self.list():
            try:
                await session.close()
            except StorageFailed as error:  # what was acknowledged is in the journal
                log.error("session %s: no last snapshot: %s", session.name, error)

    async def _first_state(
        self, model: str, rule: Rule | None, seed: int | None, from_checkpoint: str
    ) -> SessionState:
        if from_checkpoint:
            return await self._from_checkpoint(model, rule, seed, from_checkpoint)
        rule = rule or make_rule("diag_ggn")
        seed = seed or 0
        parameters, buffers = await asyncio.to_thread(initial_tensors, self.models[model], seed)
        return SessionState(model, seed, rule, parameters, buffers, rule.start(parameters))

    async def _from_checkpoint(
        self, model: str, rule: Rule | None, seed: int | None, reference: str
    ) -> SessionState:
        session, slash, checkpoint = reference.partition("/")
        if not slash or session not in self._sessions:
            raise UnknownCheckpoint(f"no checkpoint {reference!r}", expected="session/checkpoint")
        body = await self._durability.read_checkpoint(session, checkpoint)
        stored = decode_state(body)
        if stored.record.model != model:
            message = f"the checkpoint {reference!r} is of the model {stored.record.model!r}"
            raise InvalidRequest(message, expected=model)
        own = make_rule(stored.record.rule, stored.record.options)
        chosen = own if rule is None else rule
        snapshot = stored.snapshot
        if chosen.name != own.name:  # another rule cannot go on from what this one remembered
            snapshot = without_rule_state(snapshot)
        seed = stored.record.seed if seed is None else seed
        try:
            return await self._recovery.fitted(state_of(snapshot, model, seed, chosen))
        except CannotRecover as error:
            raise InvalidRequest(f"the checkpoint {reference!r} does not fit: {error}") from error

    def _recovered(
        self, stored: Stored, state: SessionState, differences: Sequence[str]
    ) -> Session:
        finished = [
            (each.key, each.fingerprint, Receipt(each.version, dict(each.answer)))
            for each in stored.answered
        ]
        machine = Machine(state.version, state.version, capacity=self._queue, finished=finished)
        problems = [*stored.problems, *differences]
        self.problems += [f"session {stored.record.name}: {problem}" for problem in problems]
        steps = [dict(each.answer) for each in stored.answered if "loss" in each.answer]
        return self._session(stored.record, state, machine, problems, steps)

    def _session(
        self,
        record: SessionRecord,
        state: SessionState,
        machine: Machine,
        problems: Sequence[str] = (),
        history: Sequence[dict[str, Any]] = (),
    ) -> Session:
        return Session(
            record,
            self.models[record.model],
            state,
            machine,
            self._executor,
            self._durability,
            self.events,
            Observer(record.name, self.events, self._observing),
            self._recovery.restored,
            problems,
            history,
        )

    def _check_name(self, name: str) -> None:
        if not NAME.fullmatch(name):
            raise InvalidRequest(f"{name!r} cannot be a session's name", expected=NAME_EXPECTED)
        if not self.is_free(name):
            raise SessionExists(f"a session is called {name!r} already")

    def _free_name(self, model: str) -> str:
        number = 1
        while not self.is_free(name := f"{model}-{number}"):
            number += 1
        return name


def _record(name: str, state: SessionState, owner: str) -> SessionRecord:
    return SessionRecord(
        name=name,
        model=state.model,
        seed=state.seed,
        rule=state.rule.name,
        options=rule_options(state.rule),
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        owner=owner,
    )
