"""The state machine of a session: who may change it, in what order, and each change once.

Pure: no clock, no tensors, no I/O. The session around it computes and stores, and tells it; it
answers with what is to happen, or raises the error that the caller is to get. docs/guarantees.md
has its table, and a test compares that table with this file.
"""

from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from curvserve_client.errors import (
    DeadlineExceeded,
    Draining,
    InFlight,
    KeyReused,
    NothingPending,
    Overloaded,
    StaleVersion,
    UnknownSession,
)

from .account import Account

REMEMBERED = 1024
"""Answers that are kept for retries; the oldest is forgotten first."""


class Kind(StrEnum):
    """What a request does to a session."""

    READ = "read"  # evaluate, curvature: computes, changes nothing
    ACCUMULATE = "forward_backward"  # adds to the pending gradient, which no snapshot holds
    STEP = "step"
    OPTIM_STEP = "optim_step"
    LOAD = "load"


class Stage(StrEnum):
    """How far a request has come."""

    QUEUED = "queued"
    RUNNING = "running"
    COMMITTING = "committing"
    ENDED = "ended"


@dataclass(frozen=True)
class Expectation:
    """The versions that a caller is willing to act on.

    Attributes:
        versions: any of these, or None for whatever is current.
    """

    versions: frozenset[int] | None = None

    def check(self, version: int) -> None:
        """Refuse a version that was not expected.

        Args:
            version: the current version.

        Raises:
            StaleVersion: it is none of the expected ones.
        """
        if self.versions is not None and version not in self.versions:
            named = ", ".join(map(str, sorted(self.versions))) or "no version that can match"
            message = f"the request names version {named}; the session is at version {version}"
            raise StaleVersion(message, expected=str(version))


@dataclass(frozen=True)
class Receipt:
    """The answer of a change that was carried out.

    Attributes:
        version: the session's version after it.
        answer: the JSON members that the caller was told.
    """

    version: int
    answer: dict[str, Any]


@dataclass(eq=False)
class Ticket:
    """One request, from its admission to its end.

    Attributes:
        kind: what it does.
        key: its idempotency key; empty for a read.
        fingerprint: a digest of the whole request.
        expectation: the versions that it may be applied to.
        pending: for an `optim_step`, how many batches its caller takes to be pending, if told.
        batches: for an `optim_step`, the keys of these batches, if told.
        afresh: for a `forward_backward`, whether what was pending before is dropped.
        account: whose requests it is counted among until it ends.
        stage: how far it has come.
        abandoned: whether its deadline has passed: what it still computes will not be applied.
    """

    kind: Kind
    key: str = ""
    fingerprint: bytes = b""
    expectation: Expectation = Expectation()
    pending: int | None = None
    batches: tuple[str, ...] | None = None
    afresh: bool = True
    account: Account = field(default_factory=Account)
    stage: Stage = Stage.QUEUED
    abandoned: bool = False


class Machine:
    """Version, pending batches, keys and queue of one session.

    A request is admitted, started, and then ended by one of `commit`, `read` and `fail`. Changes
    are started one at a time, in the order of their admission; reads at any time.

    Attributes:
        version: grows by one at every change of the training state.
        durable_version: the newest version that survives what the storage level promises; None
            where nothing is kept.
        batches: the keys of the batches that the pending gradient is made of.

    Example:
        >>> machine = Machine()
        >>> ticket = Ticket(Kind.STEP, "key", b"fingerprint")
        >>> machine.admit(ticket) is None
        True
        >>> machine.start(ticket)
        >>> machine.computed(ticket)
        >>> machine.commit(ticket, Receipt(1, {"loss": 0.5}))
        >>> machine.admit(Ticket(Kind.STEP, "key", b"fingerprint")).answer
        {'loss': 0.5}
    """

    def __init__(
        self,
        version: int = 0,
        durable_version: int | None = 0,
        *,
        capacity: int = 32,
        remembered: int = REMEMBERED,
        finished: Iterable[tuple[str, bytes, Receipt]] = (),
    ) -> None:
        """Begin at a version.

        Args:
            version: the version.
            durable_version: the newest durable one, or None.
            capacity: how many requests may be admitted and not ended at a time.
            remembered: how many answers are kept for retries.
            finished: keys, fingerprints and receipts of earlier changes, the oldest first.
        """
        self.version = version
        self.durable_version = durable_version
        self.batches: tuple[str, ...] = ()
        self._capacity = capacity
        self._remembered = remembered
        self._finished: OrderedDict[str, tuple[bytes, Receipt]] = OrderedDict()
        for key, fingerprint, receipt in finished:
            self._remember(key, fingerprint, receipt)
        self._live: set[Ticket] = set()
        self._deleted = False
        self._draining = False

    @property
    def pending(self) -> int:
        """How many batches the pending gradient is made of."""
        return len(self.batches)

    @property
    def depth(self) -> int:
        """How many requests are admitted and not ended."""
        return len(self._live)

    def check_capacity(self) -> None:
        """Refuse early, before its body is received, a request that `admit` would refuse.

        Raises:
            UnknownSession: the session was deleted.
            Draining: the server is stopping.
            Overloaded: the queue is full.
        """
        self._check_alive()
        if self._draining:
            raise Draining("the server is stopping and takes no new work")
        if self.depth >= self._capacity:
            message = f"{self.depth} requests wait or are being computed in this session"
            raise Overloaded(message, expected=f"at most {self._capacity} at a time")

    def knows(self, key: str) -> bool:
        """Tell whether a change with this key was carried out, or is being worked on."""
        return key in self._finished or any(ticket.key == key for ticket in self._live)

    def admit(self, ticket: Ticket) -> Receipt | None:
        """Take a request into the queue, or return what the same request was answered before.

        The key is looked at first: the retry of an applied step gets its answer whatever the
        version is now.

        Raises:
            KeyReused: the key belongs to another request.
            InFlight: the same request is still being worked on.
            QuotaExceeded: its account has as many requests as it may have.
            ProblemError: see `check_capacity`.
        """
        self._check_alive()
        if ticket.key:
            receipt = self._find(ticket)
            if receipt is not None:
                return receipt
        self.check_capacity()
        ticket.account.begin_request()
        self._live.add(ticket)
        return None

    def start(self, ticket: Ticket) -> None:
        """Let a queued request begin: the version is compared here, when its turn has come.

        Raises:
            UnknownSession: the session was deleted meanwhile.
            StaleVersion: the current version is none of the expected ones.
            NothingPending: an `optim_step`, and other batches are pending than it expects.
        """
        assert ticket.stage is Stage.QUEUED
        assert ticket.kind is Kind.READ or not self._changing()
        self._check_alive()
        ticket.expectation.check(self.version)
        if ticket.kind is Kind.OPTIM_STEP:
            self._check_pending(ticket)
        ticket.stage = Stage.RUNNING

    def computed(self, ticket: Ticket) -> None:
        """Let a change whose result is there be made durable; from here on it is applied.

        Raises:
            UnknownSession: the session was deleted meanwhile.
            DeadlineExceeded: the deadline passed while it was computed.
        """
        assert ticket.stage is Stage.RUNNING
        self._check_alive()
        if ticket.abandoned:
            raise DeadlineExceeded("the result came after the deadline and was not applied")
        ticket.stage = Stage.COMMITTING

    def commit(self, ticket: Ticket, receipt: Receipt) -> None:
        """End a change that was applied, and keep its answer for retries."""
        assert ticket.stage is Stage.COMMITTING
        if ticket.kind is Kind.ACCUMULATE:
            self.batches = (*(() if ticket.afresh else self.batches), ticket.key)
        else:
            assert receipt.version == self.version + 1
            self.version = receipt.version
            self.batches = ()
        self._remember(ticket.key, ticket.fingerprint, receipt)
        self._end(ticket)

    def read(self, ticket: Ticket) -> None:
        """End a read."""
        assert ticket.kind is Kind.READ
        self._end(ticket)

    def fail(self, ticket: Ticket) -> None:
        """End a request that changed nothing; its key is free, so that a retry is carried out."""
        self._end(ticket)

    def abandon(self, ticket: Ticket) -> Stage:
        """Give a request up whose deadline has passed.

        Returns:
            The stage that it was in: a queued one is ended now; a running one keeps its place in
            the queue until it has been computed, and is not applied then; one that is being
            committed cannot be given up any more.
        """
        stage = ticket.stage
        if stage is Stage.QUEUED:
            self._end(ticket)
        ticket.abandoned = stage is Stage.RUNNING
        return stage

    def made_durable(self, version: int | None) -> None:
        """Note what has become durable; None where nothing is kept."""
        self.durable_version = version

    def delete(self) -> None:
        """Refuse everything from now on; what is under way will not be applied."""
        self._check_alive()
        self._deleted = True

    def drain(self) -> None:
        """Admit nothing more; what is admitted goes on."""
        self._draining = True

    def _find(self, ticket: Ticket) -> Receipt | None:
        running = {t.key: t.fingerprint for t in self._live if t.key}
        before, receipt = self._finished.get(ticket.key, (running.get(ticket.key), None))
        if before is None:
            return None
        if before != ticket.fingerprint:
            raise KeyReused(f"the key {ticket.key!r} came before with another request")
        if receipt is None:
            raise InFlight(f"the request with the key {ticket.key!r} is still running")
        return receipt

    def _check_alive(self) -> None:
        if self._deleted:
            raise UnknownSession("the session was deleted")

    def _check_pending(self, ticket: Ticket) -> None:
        if not self.pending:
            raise NothingPending("no gradient is pending at this version", expected="1 or more")
        if ticket.pending not in (None, self.pending):
            message = f"{self.pending} batches are pending, the request expects {ticket.pending}"
            raise NothingPending(message, expected=str(ticket.pending))
        if ticket.batches not in (None, self.batches):
            raise NothingPending("other batches are pending than those that the request names")

    def _changing(self) -> bool:
        changes = (t for t in self._live if t.kind is not Kind.READ)
        return any(t.stage in (Stage.RUNNING, Stage.COMMITTING) for t in changes)

    def _remember(self, key: str, fingerprint: bytes, receipt: Receipt) -> None:
        self._finished[key] = (fingerprint, receipt)
        self._finished.move_to_end(key)
        if len(self._finished) > self._remembered:
            self._finished.popitem(last=False)

    def _end(self, ticket: Ticket) -> None:
        if ticket in self._live:  # one that was abandoned in the queue ends once more
            self._live.remove(ticket)
            ticket.account.end_request()
        ticket.stage = Stage.ENDED
