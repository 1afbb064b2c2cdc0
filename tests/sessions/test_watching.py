"""Events, readings, and who looks at steps: only for those who watch, and never in the way."""

import asyncio
import threading
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from curvserve.sessions import Events, Session, Sessions
from curvserve.sessions.curvature import SeenStep
from curvserve.sessions.events import Event
from curvserve.sessions.observer import KEPT, Observer, make_thread
from tests.sessions.living import request, some_batch, with_session


async def told(events: Events, **watch: Any) -> list[Event]:
    """What a watcher is told until the end."""
    events.close()
    return [event async for event in events.watch(**watch)]


def run(test: Callable[[], Coroutine[Any, Any, None]]) -> None:
    """Run a coroutine."""
    asyncio.run(test())


def test_one_who_knows_the_last_event_is_told_what_followed() -> None:
    async def test() -> None:
        events = Events(first=100)
        for number in range(5):
            events.publish("step", session="s", version=number)
        assert [e.number for e in await told(events, after=102)] == [103, 104]
        assert await told(events, after=104) == []
        assert [e.kind for e in await told(events, after=99)] == ["step"] * 5  # all of them

    run(test)


@pytest.mark.parametrize("after", [0, 98, 101, 105, 10**18])
def test_one_who_has_missed_something_is_told_so_first(after: int) -> None:
    async def test() -> None:
        events = Events(kept=3, first=100)
        for number in range(5):
            events.publish("step", session="s", version=number)
        found = await told(events, after=after)
        first = [] if after == 101 else ["missed"]
        assert [e.kind for e in found] == first + ["step"] * 3
        assert [e.number for e in found if e.number] == [102, 103, 104]

    run(test)


def test_the_numbers_of_a_later_process_are_higher() -> None:
    async def test() -> None:
        earlier, later = Events(), Events()
        earlier.publish("created", session="s")
        *_, last = await told(earlier, after=0)
        later.publish("created", session="s")
        assert [e.kind for e in await told(later, after=last.number)] == ["missed", "created"]

    run(test)


def test_of_a_reading_only_the_newest_is_shown_and_none_is_replayed() -> None:
    async def test() -> None:
        events = Events()
        for number in range(3):
            events.show("curvature", "s", version=number)
            events.show("status", version=number)
        found = await told(events)
        assert [(e.kind, e.number, e.members["version"]) for e in found] == [
            ("curvature", None, 2),
            ("status", None, 2),
        ]
        assert await told(events) == []  # nobody watched any more: they would be old

    run(test)


def test_the_readings_of_a_session_end_with_it() -> None:
    async def test() -> None:
        events = Events()
        events.show("curvature", "s", version=1)
        events.show("status", version=1)
        events.publish("deleted", session="s")
        assert [e.kind for e in await told(events)] == ["status"]

    run(test)


def test_a_watcher_of_one_session_is_not_told_of_the_steps_of_others() -> None:
    async def test() -> None:
        events = Events(first=1)
        for kind in ("created", "step", "failed", "deleted"):
            events.publish(kind, session="other")
        events.publish("step", session="own")
        events.show("curvature", "other", version=1)
        events.show("status", version=1)
        found = await told(events, after=0, session="own")
        assert [e.kind for e in found] == ["created", "deleted", "step", "status"]

    run(test)


def test_a_step_is_looked_at_only_while_somebody_watches() -> None:
    async def test(session: Session, sessions: Sessions) -> None:
        for _ in range(3):
            await session.step(request(), some_batch, {})
        assert session.seen_curvature() == []
        watching = sessions.events.watch()
        first = asyncio.ensure_future(anext(watching))
        await sessions.events.attended()
        await session.step(request(), some_batch, {})
        kinds = {(await first).kind, (await anext(watching)).kind}
        assert kinds == {"step", "curvature"}
        (found,) = session.seen_curvature()
        assert found["version"] == 4 and len(found["layers"]) == 4
        assert session.seen_curvature(after=4) == []
        await watching.aclose()
        assert not sessions.events.watched

    with_session(test)


def test_the_halves_of_a_step_are_looked_at_too() -> None:
    async def test(session: Session, sessions: Sessions) -> None:
        watching = sessions.events.watch()
        first = asyncio.ensure_future(anext(watching))
        await sessions.events.attended()
        await session.forward_backward(request(), some_batch, accumulate=False)
        await session.optim_step(request(), {}, {})
        assert {(await first).kind, (await anext(watching)).kind} == {"step", "curvature"}
        assert session.seen_curvature()[0]["total"] is not None
        await watching.aclose()

    with_session(test)


def test_a_look_that_takes_long_holds_no_step_up_and_no_second_one_begins() -> None:
    held = threading.Event()

    def slowly(step: SeenStep) -> dict[str, Any]:
        held.wait()
        return {"version": 1}

    async def test() -> None:
        events, thread = Events(), make_thread()
        observer = Observer("s", events, thread, slowly)
        assert not observer.is_due()  # nobody watches
        watching = events.watch()
        first = asyncio.ensure_future(anext(watching))
        await events.attended()
        assert observer.is_due()
        observer.look(STEP)  # returns although the look has not ended
        assert not observer.is_due()
        held.set()
        assert (await first).members == {"session": "s", "version": 1}
        assert not observer.is_due()  # so soon after
        await watching.aclose()
        thread.shutdown()

    run(test)


def test_a_look_that_fails_is_logged_and_the_next_one_is_made(
    caplog: pytest.LogCaptureFixture,
) -> None:
    def wrong(step: SeenStep) -> dict[str, Any]:
        raise ZeroDivisionError

    async def test() -> None:
        events, thread = Events(), make_thread()
        observer = Observer("s", events, thread, wrong)
        watching = events.watch()
        first = asyncio.ensure_future(anext(watching))
        await events.attended()
        observer.look(STEP)
        thread.shutdown()
        events.publish("step", session="s")
        assert (await first).kind == "step" and observer.history() == []
        await watching.aclose()

    run(test)
    assert "its curvature could not be looked at" in caplog.text


def test_a_session_that_ends_while_it_is_looked_at_is_not_shown() -> None:
    async def test() -> None:
        events, thread = Events(), make_thread()
        observer = Observer("s", events, thread, lambda step: {"version": 1})
        watching = events.watch()
        first = asyncio.ensure_future(anext(watching))
        await events.attended()
        observer.look(STEP)
        observer.close()
        thread.shutdown()
        events.publish("deleted", session="s")
        assert (await first).kind == "deleted" and not observer.is_due()
        await watching.aclose()

    run(test)


def test_what_was_seen_is_thinned_and_reaches_back_to_the_beginning() -> None:
    async def test() -> None:
        events = Events()
        observer = Observer("s", events, make_thread())
        for version in range(4 * KEPT):
            observer._seen({"version": version}, 0.0)
        versions = [found["version"] for found in observer.history()]
        assert KEPT // 2 <= len(versions) < KEPT and versions == sorted(set(versions))
        assert versions[-1] == 4 * KEPT - 1 and versions[0] == 0

    run(test)


STEP = SeenStep({}, {}, {}, None, {"version": 1, "update": {}}, 0.0)  # type: ignore[arg-type]  # no more of it is looked at
