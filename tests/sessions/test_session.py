"""A session: one writer, many readers, each change once or not at all."""

import asyncio
from collections.abc import Sequence

import pytest
import torch
from curvserve_client.errors import (
    CheckpointExists,
    Draining,
    InFlight,
    InvalidRequest,
    InvalidRule,
    NonFinite,
    NothingPending,
    SessionExists,
    StaleVersion,
    UnknownCheckpoint,
    UnknownModel,
    UnknownSession,
)
from curvserve_client.rules import SGD, DiagGGN
from torch import Tensor

from curvserve.sessions import Reduction, Session, Sessions
from curvserve.sessions.storage import decode_state
from tests.sessions.living import (
    Patient,
    exactly,
    request,
    some_batch,
    with_session,
    with_sessions,
)
from tests.sessions.small import batch, copies, same


async def steep_batch() -> dict[str, Tensor]:
    return batch(scale=1000.0)


async def other_batch() -> dict[str, Tensor]:
    return batch(samples=12, scale=0.5)


def test_a_repeated_change_is_answered_and_not_made_again() -> None:
    async def test(session: Session, _: Sessions) -> None:
        first = await session.step(request("a", exactly(0)), some_batch, {})
        state = session.state
        again = await session.step(request("a", exactly(0)), some_batch, {})
        assert again is first and session.state is state

    with_session(test)


def test_of_two_changes_from_one_version_one_is_stale() -> None:
    async def test(session: Session, _: Sessions) -> None:
        outcomes: Sequence[object] = await asyncio.gather(
            *(session.step(request(key, exactly(0)), some_batch, {}) for key in "ab"),
            return_exceptions=True,
        )
        assert sum(isinstance(outcome, StaleVersion) for outcome in outcomes) == 1
        assert session.state.version == 1

    with_session(test)


def test_the_same_change_twice_at_once_is_made_once() -> None:
    async def test(session: Session, _: Sessions) -> None:
        outcomes: Sequence[object] = await asyncio.gather(
            *(session.step(request("a"), some_batch, {}) for _ in range(2)),
            return_exceptions=True,
        )
        assert sum(isinstance(outcome, InFlight) for outcome in outcomes) == 1
        assert session.state.version == 1

    with_session(test)


def test_changes_that_take_whatever_is_current_come_one_after_another() -> None:
    async def test(session: Session, _: Sessions) -> None:
        steps = (session.step(request(), some_batch, {}) for _ in range(8))
        receipts = await asyncio.gather(*steps)
        assert [receipt.version for receipt in receipts] == list(range(1, 9))
        assert session.describe().steps == 8
        assert [step["version"] for step in session.history(after=5)] == [6, 7, 8]

    with_session(test)


@pytest.mark.parametrize("options", [{"lr": -1.0}, {"no_such": 0.9}, {"damping": 0.0}])
def test_a_change_that_fails_changes_nothing_and_frees_its_key(options: dict[str, float]) -> None:
    async def test(session: Session, _: Sessions) -> None:
        before, state = copies(session.state), session.state
        with pytest.raises(InvalidRule):
            await session.step(request("a"), some_batch, options)
        assert session.state is state and same(state, before)
        await session.step(request("a"), some_batch, {})
        assert session.state.version == 1

    with_session(test)


def test_options_hold_for_one_step_alone() -> None:
    async def test(session: Session, _: Sessions) -> None:
        still = await session.step(request(), some_batch, {"lr": 0.0})
        moved = await session.step(request(), some_batch, {})
        assert still.answer["step_norm"] == 0.0
        assert moved.answer["step_norm"] > 0.0

    with_session(test)


def test_a_step_to_infinity_leaves_the_session_where_it_was() -> None:
    async def test(session: Session, _: Sessions) -> None:
        state = session.state
        with pytest.raises(NonFinite):
            await session.step(request(), steep_batch, {"lr": 3e38})
        assert session.state is state and session.depth == 0

    with_session(test)


def test_a_reader_that_names_a_version_gets_that_or_nothing() -> None:
    async def test(session: Session, _: Sessions) -> None:
        found = await session.curvature(some_batch, ("grad",), 1, exactly(0, 7), Patient())
        assert found.version == 0
        with pytest.raises(StaleVersion):
            await session.curvature(some_batch, ("grad",), 1, exactly(1), Patient())

    with_session(test)


def test_two_halves_are_the_fused_step_bit_for_bit() -> None:
    async def test(session: Session, sessions: Sessions) -> None:
        rule = DiagGGN(momentum=0.9)
        fused = await sessions.create("plain", rule)
        halves = await sessions.create("plain", rule)
        for _ in range(3):
            whole = await fused.step(request(), some_batch, {"lr": 0.2})
            await halves.forward_backward(request(), some_batch, accumulate=False)
            taken = await halves.optim_step(request(), {"lr": 0.2}, {}, 1)
            assert taken.answer == whole.answer
        assert same(halves.state, copies(fused.state))

    with_session(test)


def test_gradients_add_and_curvature_is_the_mean_over_all_samples() -> None:
    async def test(session: Session, _: Sessions) -> None:
        start = session.state
        first = await session.curvature(
            some_batch, ("grad", "diag_ggn_mc"), 1, exactly(0), Patient()
        )
        await session.forward_backward(request(), some_batch, accumulate=False)
        await session.forward_backward(request(), other_batch, accumulate=True)
        taken = await session.optim_step(request(), {}, {"0.weight": 0.5}, 2)
        executor = session._executor
        second, _ = await executor.forward_backward(start, await other_batch(), None)
        # the second batch has draws of its own: part 1 of the step
        pending, answered = await executor.forward_backward(
            start, await other_batch(), second.written(None)
        )
        assert answered.seed == start.draw_seed(1) != start.draw_seed()
        alone = {  # (pending - first third) / weight gives the mean of the draw of part 1
            name: 2 * tensor - second.quantities["diag_ggn_mc"][name]
            for name, tensor in pending.quantities["diag_ggn_mc"].items()
        }
        for name, before in start.parameters.items():
            gradient = first.tensors["grad"][name] + second.quantities["grad"][name]
            gradient = gradient * (0.5 if name == "0.weight" else 1.0)
            curvature = (6 * first.tensors["diag_ggn_mc"][name] + 12 * alone[name]) / 18
            expected = before - 0.05 * gradient / (curvature + 1.0)
            torch.testing.assert_close(session.state.parameters[name], expected)
        assert (taken.answer["samples"], taken.version) == (18, 1)

    with_session(test)


def test_what_is_pending_is_told_and_checked() -> None:
    async def test(session: Session, _: Sessions) -> None:
        with pytest.raises(NothingPending):
            await session.optim_step(request(), {}, {})
        told = await session.forward_backward(request("a"), some_batch, accumulate=True)
        again = await session.forward_backward(request("a"), some_batch, accumulate=True)
        assert again is told and session.describe().pending == 1
        with pytest.raises(NothingPending):
            await session.optim_step(request(), {}, {}, 2)
        with pytest.raises(InvalidRequest, match="no trained parameter is called nothing"):
            await session.optim_step(request(), {}, {"nothing": 1.0})
        gradient = (
            await session.curvature(some_batch, ("grad",), 1, exactly(0), Patient())
        ).tensors["grad"]
        norms = {name: float(torch.linalg.vector_norm(g.double())) for name, g in gradient.items()}
        assert told.answer["grad_norms"] == pytest.approx(norms, rel=1e-12)
        await session.step(request(), some_batch, {})
        with pytest.raises(NothingPending):
            await session.optim_step(request(), {}, {})

    with_session(test)


def test_a_mean_over_batches_is_that_over_their_samples() -> None:
    async def test(session: Session, sessions: Sessions) -> None:
        start = session.state
        parts = [
            (await session.curvature(given, ("grad",), 1, exactly(0), Patient())).tensors["grad"]
            for given in (some_batch, other_batch)
        ]
        mean = Reduction.MEAN
        for given, more in ((some_batch, False), (other_batch, True)):
            await session.forward_backward(request(), given, accumulate=more, reduction=mean)
        with pytest.raises(InvalidRequest, match="a mean over batches; expected reduction=mean"):
            await session.forward_backward(request(), some_batch, accumulate=True)
        pending = session._residence.pending
        assert pending is not None
        for name in start.parameters:
            expected = (6 * parts[0][name] + 12 * parts[1][name]) / 18
            torch.testing.assert_close(pending.quantities["grad"][name], expected)

    with_session(test)


def test_groups_have_options_of_their_own_and_the_others_stay() -> None:
    async def test(session: Session, sessions: Sessions) -> None:
        start, names = session.state, list(session.state.parameters)
        whole = await sessions.create("plain")
        await whole.forward_backward(request(), some_batch, accumulate=False)
        await session.forward_backward(request(), some_batch, accumulate=False)
        for wrong, told in (
            ([{"parameters": ["nothing"], "options": {}}], "no trained parameter is called"),
            ([{"parameters": [names[0], names[0]], "options": {}}], "in two groups"),
        ):
            with pytest.raises(InvalidRequest, match=told):
                await session.optim_step(request(), {}, {}, 1, wrong)
        groups = [
            {"parameters": names[:1], "options": {"lr": 0.4}},
            {"parameters": names[1:2], "options": {}},
        ]
        taken = await session.optim_step(request(), {"lr": 0.1}, {}, 1, groups)
        await whole.optim_step(request(), {"lr": 0.1}, {}, 1)
        moved = {name: session.state.parameters[name] - start.parameters[name] for name in names}
        alike = {name: whole.state.parameters[name] - start.parameters[name] for name in names}
        torch.testing.assert_close(moved[names[0]], 4 * alike[names[0]], rtol=1e-4, atol=1e-7)
        assert torch.equal(session.state.parameters[names[1]], whole.state.parameters[names[1]])
        for name in names[2:]:
            assert torch.equal(session.state.parameters[name], start.parameters[name])
        assert taken.answer["update"]["damping#1"] == 1.0

    with_session(test)


def test_a_rule_that_tries_its_steps_needs_the_fused_one() -> None:
    async def test(session: Session, sessions: Sessions) -> None:
        trying = await sessions.create("plain", DiagGGN(damping_interval=1))
        await trying.forward_backward(request(), some_batch, accumulate=False)
        with pytest.raises(InvalidRule, match="fused"):
            await trying.optim_step(request(), {}, {})
        assert (await trying.step(request(), some_batch, {})).version == 1

    with_session(test)


def test_an_optim_step_cannot_ask_for_more_than_is_pending() -> None:
    async def test(session: Session, sessions: Sessions) -> None:
        rare = await sessions.create("plain", DiagGGN(curvature_interval=5))
        await rare.step(request(), some_batch, {})
        await rare.forward_backward(request(), some_batch, accumulate=False)
        with pytest.raises(InvalidRule, match="diag_ggn_mc, which is not pending"):
            await rare.optim_step(request(), {"curvature_interval": 1}, {})
        assert (await rare.optim_step(request(), {}, {})).version == 2

    with_session(test)


def test_a_deleted_session_takes_no_further_change() -> None:
    async def test(session: Session, sessions: Sessions) -> None:
        await sessions.delete("plain")
        with pytest.raises(UnknownSession):
            sessions.find("plain")
        with pytest.raises(UnknownSession):
            await session.step(request(), some_batch, {})

    with_session(test)


def test_a_session_that_is_deleted_while_a_step_computes_does_not_take_it() -> None:
    async def test(session: Session, sessions: Sessions) -> None:
        step = asyncio.ensure_future(session.step(request(), some_batch, {}))
        await asyncio.sleep(0)  # until it has been admitted
        await sessions.delete("plain")
        with pytest.raises(UnknownSession):
            await step
        assert session.state.version == 0
        await sessions.create("plain", name="plain")

    with_session(test)


def test_a_draining_session_finishes_what_it_admitted() -> None:
    async def test(session: Session, sessions: Sessions) -> None:
        steps = [asyncio.ensure_future(session.step(request(), some_batch, {})) for _ in range(3)]
        await asyncio.sleep(0)
        sessions.drain()
        with pytest.raises(Draining):
            await session.step(request(), some_batch, {})
        with pytest.raises(Draining):
            await sessions.create("plain")
        await sessions.finish(60.0)
        assert [step.result().version for step in steps] == [1, 2, 3]

    with_session(test)


def test_what_has_not_begun_when_the_time_is_over_is_dropped_and_told() -> None:
    async def test(session: Session, sessions: Sessions) -> None:
        steps = [asyncio.ensure_future(session.step(request(), some_batch, {})) for _ in range(3)]
        await asyncio.sleep(0)
        await sessions.finish(0.0)
        outcomes = await asyncio.gather(*steps, return_exceptions=True)
        taken = [outcome for outcome in outcomes if not isinstance(outcome, Draining)]
        assert len(taken) == session.state.version < 3

    with_session(test)


def test_what_the_end_of_the_server_cuts_off_is_refused_and_not_applied() -> None:
    computing, go_on = asyncio.Event(), asyncio.Event()

    async def slow_batch() -> dict[str, Tensor]:
        computing.set()
        await go_on.wait()
        return await some_batch()

    async def test(session: Session, _: Sessions) -> None:
        steps = [asyncio.ensure_future(session.step(request(key), slow_batch, {})) for key in "ab"]
        await computing.wait()
        for step in steps:
            step.cancel()  # as the server cancels, at its end, who still waits for an answer
        for outcome in await asyncio.gather(*steps, return_exceptions=True):
            assert isinstance(outcome, Draining) and "the session is unchanged" in str(outcome)
        go_on.set()
        await session.idle()
        assert session.state.version == session.depth == 0
        assert [(await session.step(request(key), some_batch, {})).version for key in "ab"] == [
            1,
            2,
        ]

    with_session(test)


def test_a_checkpoint_is_where_another_session_goes_on_bit_for_bit() -> None:
    async def test(session: Session, sessions: Sessions) -> None:
        rule = DiagGGN(momentum=0.9, beta2=0.9)
        first = await sessions.create("dropped", rule, seed=3)
        await first.step(request(), some_batch, {})
        info = await first.checkpoint("one", rule_state=True)
        assert (info.name, info.version, info.with_rule_state) == ("one", 1, True)
        second = await sessions.create("dropped", from_checkpoint=f"{first.name}/one")
        for each in (first, second):
            await each.step(request(), some_batch, {})
        assert second.state.version == 2 and second.state.rule == rule
        assert same(second.state, copies(first.state))
        held = decode_state(await first.read_checkpoint("one")).snapshot
        assert held.version == 1

    with_session(test)


def test_a_checkpoint_keeps_its_name_and_its_version() -> None:
    async def test(session: Session, _: Sessions) -> None:
        info = await session.checkpoint("one", rule_state=True)
        assert await session.checkpoint("one", rule_state=True) == info
        with pytest.raises(CheckpointExists):
            await session.checkpoint("one", rule_state=False)
        await session.step(request(), some_batch, {})
        with pytest.raises(CheckpointExists):
            await session.checkpoint("one", rule_state=True)
        assert await session.checkpoints() == [info]
        with pytest.raises(UnknownCheckpoint):
            await session.read_checkpoint("two")

    with_session(test)


def test_another_rule_goes_on_from_a_checkpoints_parameters_alone() -> None:
    async def test(session: Session, sessions: Sessions) -> None:
        first = await sessions.create("plain", DiagGGN(momentum=0.9))
        await first.step(request(), some_batch, {})
        await first.checkpoint("one", rule_state=True)
        other = await sessions.create("plain", SGD(), from_checkpoint=f"{first.name}/one")
        assert same(other.state, copies(first.state)) and not other.state.rule_state.tensors

    with_session(test)


@pytest.mark.parametrize("reference", ["plain", "plain/", "plain/none", "none/one", "/"])
def test_a_checkpoint_that_is_not_there_is_refused(reference: str) -> None:
    async def test(session: Session, sessions: Sessions) -> None:
        with pytest.raises(UnknownCheckpoint):
            await sessions.create("plain", from_checkpoint=reference)

    with_session(test)


def test_a_checkpoint_of_another_model_is_refused() -> None:
    async def test(session: Session, sessions: Sessions) -> None:
        await session.checkpoint("one", rule_state=True)
        with pytest.raises(InvalidRequest, match="is of the model 'plain'"):
            await sessions.create("dropped", from_checkpoint="plain/one")

    with_session(test)


def test_a_session_is_named_once() -> None:
    async def test(_: Session, sessions: Sessions) -> None:
        outcomes: Sequence[object] = await asyncio.gather(
            *(sessions.create("plain", name="twice") for _ in range(2)),
            return_exceptions=True,
        )
        assert sum(isinstance(outcome, SessionExists) for outcome in outcomes) == 1

    with_session(test)


def test_a_session_without_a_name_is_given_a_free_one() -> None:
    async def test(_: Session, sessions: Sessions) -> None:
        made = await asyncio.gather(*(sessions.create("plain") for _ in range(3)))
        assert [session.name for session in made] == ["plain-1", "plain-2", "plain-3"]

    with_session(test)


def test_a_model_that_is_not_served_is_refused() -> None:
    async def test(_: Session, sessions: Sessions) -> None:
        with pytest.raises(UnknownModel, match="served here: plain, dropped"):
            await sessions.create("other")

    with_session(test)


def test_everything_that_happens_is_told_in_order() -> None:
    async def test(sessions: Sessions) -> None:
        events = sessions.events.watch()
        first = asyncio.ensure_future(anext(events))
        await sessions.events.attended()
        session = await sessions.create("plain", name="s")
        await session.step(request(), some_batch, {})
        with pytest.raises(NonFinite):
            await session.step(request(), steep_batch, {"lr": 3e38})
        await session.checkpoint("one", rule_state=True)
        await sessions.delete("s")
        sessions.events.close()
        told = [await first, *[event async for event in events]]
        assert [event.kind for event in told] == [
            "created", "step", "failed", "checkpoint", "deleted"
        ]  # fmt: skip
        numbers = [event.number or 0 for event in told]
        assert numbers == list(range(numbers[0], numbers[0] + 5))
        assert all(event.members["session"] == "s" for event in told)
        assert told[1].members["version"] == 1 and told[2].members["code"] == "non_finite"
        later = [event.number async for event in sessions.events.watch(after=numbers[2])]
        assert later == numbers[3:]

    with_sessions(test)
