"""The state machine of a session: every transition of its table, without a server."""

import pytest
from curvserve_client.errors import (
    DeadlineExceeded,
    Draining,
    InFlight,
    KeyReused,
    NothingPending,
    Overloaded,
    ProblemError,
    QuotaExceeded,
    StaleVersion,
    UnknownSession,
)
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from curvserve.sessions import Account
from curvserve.sessions.machine import Expectation, Kind, Machine, Receipt, Stage, Ticket


def exactly(version: int) -> Expectation:
    return Expectation(frozenset([version]))


def carry_out(machine: Machine, ticket: Ticket) -> Receipt:
    """Take a change through all of its stages."""
    assert machine.admit(ticket) is None
    machine.start(ticket)
    machine.computed(ticket)
    grown = 0 if ticket.kind is Kind.ACCUMULATE else 1
    receipt = Receipt(machine.version + grown, {"version": machine.version + grown})
    machine.commit(ticket, receipt)
    return receipt


def test_the_retry_of_a_finished_change_gets_its_answer_at_any_version() -> None:
    machine = Machine()
    first = carry_out(machine, Ticket(Kind.STEP, "a", b"a", exactly(0)))
    carry_out(machine, Ticket(Kind.STEP, "b", b"b", exactly(1)))
    assert machine.admit(Ticket(Kind.STEP, "a", b"a", exactly(0))) is first
    assert (machine.version, machine.depth) == (2, 0)


@pytest.mark.parametrize("stage", [Stage.QUEUED, Stage.RUNNING, Stage.COMMITTING])
def test_the_retry_of_a_live_change_is_in_flight_in_every_stage(stage: Stage) -> None:
    machine, ticket = Machine(), Ticket(Kind.STEP, "a", b"a")
    machine.admit(ticket)
    if stage is not Stage.QUEUED:
        machine.start(ticket)
    if stage is Stage.COMMITTING:
        machine.computed(ticket)
    with pytest.raises(InFlight):
        machine.admit(Ticket(Kind.STEP, "a", b"a"))
    with pytest.raises(KeyReused):
        machine.admit(Ticket(Kind.STEP, "a", b"other"))


def test_another_request_under_a_finished_key_is_refused() -> None:
    machine = Machine()
    carry_out(machine, Ticket(Kind.STEP, "a", b"a"))
    with pytest.raises(KeyReused):
        machine.admit(Ticket(Kind.LOAD, "a", b"other"))


def test_a_failed_change_frees_its_key_and_changes_nothing() -> None:
    machine, ticket = Machine(), Ticket(Kind.STEP, "a", b"a")
    machine.admit(ticket)
    machine.start(ticket)
    machine.fail(ticket)
    assert (machine.version, machine.depth) == (0, 0)
    assert carry_out(machine, Ticket(Kind.STEP, "a", b"a")).version == 1


def test_the_version_is_compared_when_the_turn_has_come() -> None:
    machine = Machine()
    first, second = (Ticket(Kind.STEP, key, b"", exactly(0)) for key in "ab")
    machine.admit(first)
    machine.admit(second)
    machine.start(first)
    machine.computed(first)
    machine.commit(first, Receipt(1, {}))
    with pytest.raises(StaleVersion, match="names version 0; the session is at version 1"):
        machine.start(second)


def test_a_full_queue_refuses_and_says_its_capacity() -> None:
    machine = Machine(capacity=2)
    tickets = [Ticket(Kind.READ) for _ in range(3)]
    machine.admit(tickets[0])
    machine.admit(tickets[1])
    with pytest.raises(Overloaded, match="at most 2"):
        machine.admit(tickets[2])
    machine.start(tickets[0])
    machine.read(tickets[0])
    assert machine.admit(tickets[2]) is None


def test_a_retry_is_answered_even_where_the_queue_is_full_or_drains() -> None:
    machine = Machine(capacity=1)
    first = carry_out(machine, Ticket(Kind.STEP, "a", b"a"))
    machine.admit(Ticket(Kind.STEP, "b", b"b"))
    machine.drain()
    assert machine.admit(Ticket(Kind.STEP, "a", b"a")) is first


def test_a_draining_session_ends_what_it_admitted_and_admits_nothing() -> None:
    machine, ticket = Machine(), Ticket(Kind.STEP, "a", b"a")
    machine.admit(ticket)
    machine.drain()
    with pytest.raises(Draining):
        machine.admit(Ticket(Kind.STEP, "b", b"b"))
    machine.start(ticket)
    machine.computed(ticket)
    machine.commit(ticket, Receipt(1, {}))
    assert machine.version == 1


def test_a_deadline_ends_a_queued_change() -> None:
    machine, ticket = Machine(), Ticket(Kind.STEP, "a", b"a")
    machine.admit(ticket)
    assert machine.abandon(ticket) is Stage.QUEUED
    assert machine.depth == 0
    assert carry_out(machine, Ticket(Kind.STEP, "a", b"a")).version == 1


def test_a_running_change_past_its_deadline_keeps_its_place_and_is_not_applied() -> None:
    machine, ticket = Machine(capacity=1), Ticket(Kind.STEP, "a", b"a")
    machine.admit(ticket)
    machine.start(ticket)
    assert machine.abandon(ticket) is Stage.RUNNING
    with pytest.raises(Overloaded):
        machine.admit(Ticket(Kind.STEP, "b", b"b"))
    with pytest.raises(DeadlineExceeded, match="was not applied"):
        machine.computed(ticket)
    machine.fail(ticket)
    assert machine.version == 0
    assert carry_out(machine, Ticket(Kind.STEP, "a", b"a")).version == 1


def test_a_change_that_is_being_committed_is_past_every_deadline() -> None:
    machine, ticket = Machine(), Ticket(Kind.STEP, "a", b"a")
    machine.admit(ticket)
    machine.start(ticket)
    machine.computed(ticket)
    assert machine.abandon(ticket) is Stage.COMMITTING
    machine.commit(ticket, Receipt(1, {}))
    assert machine.version == 1


def test_a_deleted_session_refuses_everything_and_applies_nothing() -> None:
    machine, ticket = Machine(), Ticket(Kind.STEP, "a", b"a")
    machine.admit(ticket)
    machine.start(ticket)
    machine.delete()
    with pytest.raises(UnknownSession):
        machine.computed(ticket)
    with pytest.raises(UnknownSession):
        machine.admit(Ticket(Kind.READ))
    with pytest.raises(UnknownSession):
        machine.delete()


def test_batches_accumulate_until_a_step_takes_them() -> None:
    machine = Machine()
    with pytest.raises(NothingPending):
        carry_out(machine, Ticket(Kind.OPTIM_STEP, "a", b"a"))
    machine = Machine()
    carry_out(machine, Ticket(Kind.ACCUMULATE, "a", b"a"))
    carry_out(machine, Ticket(Kind.ACCUMULATE, "b", b"b", afresh=False))
    assert (machine.version, machine.pending) == (0, 2)
    carry_out(machine, Ticket(Kind.OPTIM_STEP, "c", b"c", pending=2))
    assert (machine.version, machine.pending) == (1, 0)


def test_an_optim_step_that_expects_other_batches_is_refused() -> None:
    machine = Machine()
    carry_out(machine, Ticket(Kind.ACCUMULATE, "a", b"a"))
    ticket = Ticket(Kind.OPTIM_STEP, "b", b"b", pending=2)
    machine.admit(ticket)
    with pytest.raises(NothingPending, match="1 batches are pending, the request expects 2"):
        machine.start(ticket)


def test_an_optim_step_may_name_the_batches_that_it_takes() -> None:
    machine = Machine()
    carry_out(machine, Ticket(Kind.ACCUMULATE, "a", b"a"))
    carry_out(machine, Ticket(Kind.ACCUMULATE, "b", b"b", afresh=False))
    for batches in (("a",), ("b", "a"), ("a", "b", "c")):
        ticket = Ticket(Kind.OPTIM_STEP, "s", b"s", batches=batches)
        machine.admit(ticket)
        with pytest.raises(NothingPending, match="other batches are pending"):
            machine.start(ticket)
        machine.fail(ticket)
    carry_out(machine, Ticket(Kind.OPTIM_STEP, "s", b"s", batches=("a", "b")))
    assert (machine.version, machine.batches) == (1, ())


def test_a_batch_that_begins_afresh_drops_what_was_pending() -> None:
    machine = Machine()
    for key in "abc":
        carry_out(machine, Ticket(Kind.ACCUMULATE, key, b"", afresh=True))
    assert machine.pending == 1


@pytest.mark.parametrize("kind", [Kind.STEP, Kind.LOAD])
def test_another_change_drops_what_was_pending(kind: Kind) -> None:
    machine = Machine()
    carry_out(machine, Ticket(Kind.ACCUMULATE, "a", b"a"))
    carry_out(machine, Ticket(kind, "b", b"b"))
    assert machine.pending == 0


@given(st.integers(1, 5), st.lists(st.integers(0, 9), unique=True))
def test_the_newest_answers_are_remembered(remembered: int, order: list[int]) -> None:
    machine = Machine(remembered=remembered)
    for number in order:
        carry_out(machine, Ticket(Kind.STEP, str(number), b""))
    kept = [n for n in order if machine._find(Ticket(Kind.STEP, str(n), b"")) is not None]
    assert kept == order[-remembered:]


def test_the_keys_of_an_earlier_process_are_known() -> None:
    machine = Machine(7, 7, finished=[("a", b"a", Receipt(7, {"version": 7}))])
    receipt = machine.admit(Ticket(Kind.STEP, "a", b"a", exactly(6)))
    assert receipt == Receipt(7, {"version": 7})


def test_a_retry_is_answered_even_where_its_account_is_full() -> None:
    one, two, account = Machine(), Machine(), Account("loop", max_requests=1)
    receipt = carry_out(one, Ticket(Kind.STEP, "a", b"a", account=account))
    two.admit(Ticket(Kind.READ, account=account))
    assert one.admit(Ticket(Kind.STEP, "a", b"a", account=account)) is receipt
    with pytest.raises(QuotaExceeded) as caught:
        one.admit(Ticket(Kind.STEP, "b", b"b", account=account))
    assert caught.value.retry_after
    assert (one.depth, account.requests, account.refused["requests"]) == (0, 1, 1)
    one.admit(Ticket(Kind.STEP, "b", b"b", account=Account("other", max_requests=1)))
    assert one.knows("a") and one.knows("b") and not one.knows("c")


class AnyOrder(RuleBasedStateMachine):
    """Requests in any order and at any stage: at most one change runs, each is applied once.

    They come from two callers, one of whom may have two under way.
    """

    def __init__(self) -> None:
        super().__init__()
        self.machine = Machine(capacity=4)
        self.queue: list[Ticket] = []
        self.running: Ticket | None = None
        self.applied: list[str] = []
        self.steps = 0
        self.accounts = Account("few", max_requests=2), Account("many")

    def live(self, account: Account) -> int:
        return sum(t.account is account for t in [*self.queue, self.running] if t is not None)

    @rule(number=st.integers(0, 6), few=st.booleans())
    def send(self, number: int, few: bool) -> None:
        account = self.accounts[0 if few else 1]
        ticket = Ticket(Kind.STEP, str(number), b"", account=account)
        live = {t.key for t in [*self.queue, self.running] if t is not None}
        try:
            receipt = self.machine.admit(ticket)
        except InFlight:
            assert ticket.key in live
        except Overloaded:
            assert len(live) == 4 and ticket.key not in self.applied
        except QuotaExceeded:
            assert few and self.live(account) == 2 and ticket.key not in self.applied
        else:
            assert (receipt is not None) == (ticket.key in self.applied)
            if receipt is None:
                self.queue.append(ticket)

    @rule()
    def begin(self) -> None:
        if self.running is None and self.queue:
            self.running = self.queue.pop(0)
            self.machine.start(self.running)

    @rule(fails=st.booleans())
    def finish(self, fails: bool) -> None:
        if self.running is None:
            return
        ticket, self.running = self.running, None
        try:
            if fails:
                raise ProblemError("the computation failed")
            self.machine.computed(ticket)
            self.machine.commit(ticket, Receipt(self.machine.version + 1, {}))
        except (ProblemError, DeadlineExceeded):
            self.machine.fail(ticket)
        else:
            self.applied.append(ticket.key)

    @rule(data=st.data())
    def time_passes(self, data: st.DataObject) -> None:
        live = [*self.queue, *([self.running] if self.running else [])]
        if live:
            ticket = data.draw(st.sampled_from(live))
            if self.machine.abandon(ticket) is Stage.QUEUED:
                self.queue.remove(ticket)
                self.machine.fail(ticket)  # as the work does that is cancelled then

    @invariant()
    def each_change_counts_once(self) -> None:
        assert self.machine.version == len(self.applied) == len(set(self.applied))
        assert self.machine.depth == len(self.queue) + (self.running is not None)
        assert all(account.requests == self.live(account) for account in self.accounts)


TestAnyOrder = AnyOrder.TestCase
