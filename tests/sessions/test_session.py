"""A session: one writer, many readers, each change once or not at all."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence

import pytest
from curvserve_client.errors import (
    InFlight,
    InvalidRule,
    NonFinite,
    SessionExists,
    StaleVersion,
    UnknownModel,
    UnknownSession,
)
from curvserve_client.rules import DiagGGN
from torch import Tensor

from curvserve.sessions import Change, Expectation, InlineExecutor, Session, Sessions
from tests.sessions.small import CPU, PLAIN, batch, copies, same

ANY = Expectation()


def in_session(test: Callable[[Session, Sessions], Awaitable[None]]) -> None:
    """Run a test's coroutine with a fresh session and the collection that it is in."""

    async def run() -> None:
        executor = InlineExecutor({"plain": PLAIN}, CPU)
        sessions = Sessions({"plain": PLAIN}, executor)
        try:
            await test(await sessions.create("plain", DiagGGN(), name="plain"), sessions)
        finally:
            executor.close()

    asyncio.run(run())


async def some_batch() -> dict[str, Tensor]:
    return batch()


async def steep_batch() -> dict[str, Tensor]:
    return batch(scale=1000.0)


def change(key: str, expected: Expectation = ANY, request: bytes = b"") -> Change:
    return Change(key, request or key.encode(), expected)


def exactly(*versions: int) -> Expectation:
    return Expectation(frozenset(versions))


def test_a_repeated_change_is_answered_and_not_made_again() -> None:
    async def test(session: Session, _: Sessions) -> None:
        first = await session.step(change("a", exactly(0)), some_batch, {})
        state = session.state
        again = await session.step(change("a", exactly(0)), some_batch, {})
        assert again is first and session.state is state

    in_session(test)


def test_of_two_changes_from_one_version_one_is_stale() -> None:
    async def test(session: Session, _: Sessions) -> None:
        outcomes: Sequence[object] = await asyncio.gather(
            *(session.step(change(key, exactly(0)), some_batch, {}) for key in "ab"),
            return_exceptions=True,
        )
        assert sum(isinstance(outcome, StaleVersion) for outcome in outcomes) == 1
        assert session.state.version == 1

    in_session(test)


def test_the_same_change_twice_at_once_is_made_once() -> None:
    async def test(session: Session, _: Sessions) -> None:
        outcomes: Sequence[object] = await asyncio.gather(
            *(session.step(change("a"), some_batch, {}) for _ in range(2)),
            return_exceptions=True,
        )
        assert sum(isinstance(outcome, InFlight) for outcome in outcomes) == 1
        assert session.state.version == 1

    in_session(test)


def test_changes_that_take_whatever_is_current_come_one_after_another() -> None:
    async def test(session: Session, _: Sessions) -> None:
        steps = (session.step(change(str(key)), some_batch, {}) for key in range(8))
        receipts = await asyncio.gather(*steps)
        assert [receipt.version for receipt in receipts] == list(range(1, 9))
        assert session.describe().steps == 8

    in_session(test)


@pytest.mark.parametrize("options", [{"lr": -1.0}, {"nesterov": 0.9}, {"damping": 0.0}])
def test_a_change_that_fails_changes_nothing_and_frees_its_key(options: dict[str, float]) -> None:
    async def test(session: Session, _: Sessions) -> None:
        before, state = copies(session.state), session.state
        with pytest.raises(InvalidRule):
            await session.step(change("a"), some_batch, options)
        assert session.state is state and same(state, before)
        await session.step(change("a"), some_batch, {})
        assert session.state.version == 1

    in_session(test)


def test_options_hold_for_one_step_alone() -> None:
    async def test(session: Session, _: Sessions) -> None:
        still = await session.step(change("a"), some_batch, {"lr": 0.0})
        moved = await session.step(change("b"), some_batch, {})
        assert still.answer["step_norm"] == 0.0
        assert moved.answer["step_norm"] > 0.0

    in_session(test)


def test_a_step_to_infinity_leaves_the_session_where_it_was() -> None:
    async def test(session: Session, _: Sessions) -> None:
        state = session.state
        with pytest.raises(NonFinite):
            await session.step(change("a"), steep_batch, {"lr": 3e38})
        assert session.state is state

    in_session(test)


def test_a_reader_that_names_a_version_gets_that_or_nothing() -> None:
    async def test(session: Session, _: Sessions) -> None:
        found = await session.curvature(batch(), ("grad",), 1, exactly(0, 7))
        assert found.version == 0
        with pytest.raises(StaleVersion):
            await session.curvature(batch(), ("grad",), 1, exactly(1))

    in_session(test)


def test_a_deleted_session_takes_no_further_change() -> None:
    async def test(session: Session, sessions: Sessions) -> None:
        await sessions.delete("plain")
        with pytest.raises(UnknownSession):
            sessions.find("plain")
        with pytest.raises(UnknownSession):
            await session.step(change("a"), some_batch, {})

    in_session(test)


def test_a_session_is_named_once() -> None:
    async def test(_: Session, sessions: Sessions) -> None:
        outcomes: Sequence[object] = await asyncio.gather(
            *(sessions.create("plain", DiagGGN(), name="twice") for _ in range(2)),
            return_exceptions=True,
        )
        assert sum(isinstance(outcome, SessionExists) for outcome in outcomes) == 1

    in_session(test)


def test_a_session_without_a_name_is_given_a_free_one() -> None:
    async def test(_: Session, sessions: Sessions) -> None:
        made = await asyncio.gather(*(sessions.create("plain", DiagGGN()) for _ in range(3)))
        assert [session.name for session in made] == ["plain-1", "plain-2", "plain-3"]

    in_session(test)


def test_a_model_that_is_not_served_is_refused() -> None:
    async def test(_: Session, sessions: Sessions) -> None:
        with pytest.raises(UnknownModel, match="served here: plain"):
            await sessions.create("other", DiagGGN())

    in_session(test)
