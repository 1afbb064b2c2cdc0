"""Sessions after a restart: the same bits, the same answers, and a word for whatever is not so."""

import os
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from curvserve_client.errors import NonFinite, SessionExists
from curvserve_client.rules import Adam, DiagGGN, Rule
from torch import Tensor, nn

from curvserve.sessions import Reduction, Sessions, SessionState
from curvserve.sessions.storage import Level
from tests.sessions.living import exactly, folder, request, some_batch, with_sessions
from tests.sessions.small import DROPPED, PLAIN, batch, classifier, copies

Test = Callable[[Sessions], Awaitable[None]]


async def steep_batch() -> dict[str, Tensor]:
    return batch(scale=1000.0)


async def train(sessions: Sessions, name: str, steps: int = 3) -> None:
    """Take fused steps, a step in two halves, and a replacement of the parameters."""
    session = sessions.find(name)
    for number in range(steps):
        await session.step(request(f"step {number}"), some_batch, {"lr": 0.1 + number})
    mean = Reduction.MEAN
    await session.forward_backward(request(), some_batch, accumulate=False, reduction=mean)
    await session.forward_backward(request(), some_batch, accumulate=True, reduction=mean)
    first, *others = session.state.parameters
    groups = [
        {"parameters": [first], "options": {"lr": 0.3}},
        {"parameters": others, "options": {}},
    ]
    await session.optim_step(request("optim"), {"lr": 0.2}, {"2.bias": 0.25}, 2, groups)
    halved = {key: tensor / 2 for key, tensor in session.state.parameters.items()}

    async def replacement() -> dict[str, Tensor]:
        return halved

    await session.load(request("load"), replacement)
    await session.step(request("last"), some_batch, {})


def whole(state: SessionState) -> dict[str, Tensor]:
    slots = state.rule_state.tensors.items()
    rule = {f"rule.{slot}.{k}": t.clone() for slot, named in slots for k, t in named.items()}
    return copies(state) | rule


def equal(state: SessionState, before: dict[str, Tensor]) -> bool:
    found = whole(state)
    return found.keys() == before.keys() and all(torch.equal(found[k], before[k]) for k in found)


RULES = [DiagGGN(momentum=0.9, beta2=0.9), Adam()]


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.name)
@pytest.mark.parametrize("model", ["plain", "dropped"])
@pytest.mark.parametrize("level", [Level.FULL, Level.PROCESS])
@pytest.mark.parametrize("snapshot_every", [1, 4, 256])
def test_a_session_comes_back_with_every_bit_and_every_answer(
    tmp_path: Path, level: Level, model: str, rule: Rule, snapshot_every: int
) -> None:
    before: dict[str, Tensor] = {}
    answers = {}

    async def first(sessions: Sessions) -> None:
        session = await sessions.create(model, rule, seed=5, name="s")
        await train(sessions, "s")
        before.update(whole(session.state))
        answers["last"] = await session.step(request("last"), some_batch, {})
        assert session.durable_version == session.state.version == 6

    async def second(sessions: Sessions) -> None:
        session = sessions.find("s")
        assert equal(session.state, before) and session.problems == () and not sessions.problems
        state = session.state
        assert (state.version, state.steps, state.seed, state.rule) == (6, 5, 5, rule)
        assert session.durable_version == 6
        for key, version in (("step 0", 1), ("optim", 4), ("load", 5), ("last", 6)):
            again = await session.step(request(key, exactly(0)), some_batch, {})
            assert again.version == version
        assert await session.step(request("last"), some_batch, {}) == answers["last"]
        assert session.state is state
        assert [step["version"] for step in session.history()] == [1, 2, 3, 4, 6]
        assert (await session.step(request("next"), some_batch, {})).version == 7
        with pytest.raises(SessionExists):
            await sessions.create("plain", name="s")

    opened = folder(tmp_path / "data", level)
    with_sessions(first, opened, snapshot_every=snapshot_every, closes=False)
    with_sessions(second, opened, snapshot_every=snapshot_every, closes=False)


def test_an_undisturbed_session_and_one_restarted_at_every_step_end_alike(tmp_path: Path) -> None:
    ends: dict[str, dict[str, Tensor]] = {}
    opened = folder(tmp_path / "data")

    async def begin(sessions: Sessions) -> None:
        for name in ("restarted", "undisturbed"):
            await sessions.create("dropped", RULES[0], name=name)
        session = sessions.find("undisturbed")
        for _ in range(5):
            await session.step(request(), some_batch, {})
        ends["undisturbed"] = whole(session.state)

    async def one_step(sessions: Sessions) -> None:
        session = sessions.find("restarted")
        await session.step(request(), some_batch, {})
        ends["restarted"] = whole(session.state)

    with_sessions(begin, opened, closes=False)
    for number in range(5):
        with_sessions(one_step, opened, closes=number % 2 == 0)
    assert ends["restarted"].keys() == ends["undisturbed"].keys()
    assert all(torch.equal(t, ends["restarted"][k]) for k, t in ends["undisturbed"].items())


def test_at_level_snapshot_what_was_told_to_be_durable_comes_back(tmp_path: Path) -> None:
    durable: list[int | None] = []
    opened = folder(tmp_path / "data", Level.SNAPSHOT)

    async def first(sessions: Sessions) -> None:
        session = await sessions.create("plain", name="s")
        for _ in range(8):
            await session.step(request(), some_batch, {})
            durable.append(session.durable_version)

    async def second(sessions: Sessions) -> None:
        assert sessions.find("s").state.version == 6
        await sessions.find("s").step(request(), some_batch, {})

    async def third(sessions: Sessions) -> None:
        assert sessions.find("s").state.version == 7

    with_sessions(first, opened, snapshot_every=3, closes=False)
    assert durable == [0, 0, 3, 3, 3, 6, 6, 6]
    with_sessions(second, opened, snapshot_every=3, closes=True)
    with_sessions(third, opened)


def test_a_failed_change_leaves_no_trace_but_in_the_journal(tmp_path: Path) -> None:
    opened = folder(tmp_path / "data")

    async def first(sessions: Sessions) -> None:
        session = await sessions.create("plain", name="s")
        with pytest.raises(NonFinite):
            await session.step(request("a"), steep_batch, {"lr": 3e38})

    async def second(sessions: Sessions) -> None:
        session = sessions.find("s")
        assert session.state.version == 0
        assert (await session.step(request("a"), some_batch, {})).version == 1

    with_sessions(first, opened, closes=False)
    with_sessions(second, opened)


def test_what_is_pending_is_not_kept(tmp_path: Path) -> None:
    opened = folder(tmp_path / "data")

    async def first(sessions: Sessions) -> None:
        session = await sessions.create("plain", name="s")
        await session.forward_backward(request("a"), some_batch, accumulate=False)

    async def second(sessions: Sessions) -> None:
        session = sessions.find("s")
        assert session.describe().pending == 0
        await session.forward_backward(request("a"), some_batch, accumulate=False)
        assert (await session.optim_step(request(), {}, {}, 1)).version == 1

    with_sessions(first, opened, closes=False)
    with_sessions(second, opened)


def test_a_session_that_was_deleted_stays_so(tmp_path: Path) -> None:
    opened = folder(tmp_path / "data")

    async def first(sessions: Sessions) -> None:
        for name in ("kept", "ended"):
            await sessions.create("plain", name=name)
        await sessions.delete("ended")

    async def second(sessions: Sessions) -> None:
        assert [session.name for session in sessions.list()] == ["kept"]
        await sessions.create("plain", name="ended")

    with_sessions(first, opened, closes=False)
    with_sessions(second, opened)


def test_a_session_whose_model_is_not_served_is_kept_and_told_of(tmp_path: Path) -> None:
    opened = folder(tmp_path / "data")

    async def first(sessions: Sessions) -> None:
        await (await sessions.create("dropped", name="s")).step(request(), some_batch, {})

    async def without(sessions: Sessions) -> None:
        assert sessions.list() == []
        assert sessions.problems == [
            "session s: its model 'dropped' is not served; it is kept, and not served"
        ]
        with pytest.raises(SessionExists):
            await sessions.create("plain", name="s")

    async def again(sessions: Sessions) -> None:
        assert sessions.find("s").state.version == 1

    with_sessions(first, opened, closes=False)
    with_sessions(without, opened, models=(PLAIN,))
    with_sessions(again, opened)


def test_a_model_that_has_other_parameters_now_is_told_of(tmp_path: Path) -> None:
    opened = folder(tmp_path / "data")
    other = replace(classifier("plain", nn.ReLU), build=lambda: nn.Linear(4, 3))

    async def first(sessions: Sessions) -> None:
        await sessions.create("plain", name="s")

    async def second(sessions: Sessions) -> None:
        assert sessions.list() == []
        assert "the parameter weight of its model is not what it was" in sessions.problems[0]

    with_sessions(first, opened, closes=False)
    with_sessions(second, opened, models=(other,))


class Overflow(nn.Module):
    """Takes the place of a layer that has no parameters."""

    def forward(self, x: Tensor) -> Tensor:
        return x / 0


def test_a_change_that_cannot_be_repeated_keeps_its_session_from_being_served(
    tmp_path: Path,
) -> None:
    opened = folder(tmp_path / "data")

    async def first(sessions: Sessions) -> None:
        await (await sessions.create("plain", name="s")).step(request(), some_batch, {})

    async def broken(sessions: Sessions) -> None:
        assert sessions.list() == []
        assert "session s:" in sessions.problems[0] and "not served" in sessions.problems[0]

    async def again(sessions: Sessions) -> None:
        assert sessions.find("s").state.version == 1

    with_sessions(first, opened, closes=False)
    with_sessions(broken, opened, models=(classifier("plain", Overflow),))
    with_sessions(again, opened)


def test_a_replay_that_gives_other_bits_is_told_and_served(tmp_path: Path) -> None:
    """The model's forward pass has changed between the two starts, its parameters have not."""
    opened = folder(tmp_path / "data")
    other = classifier("plain", nn.Tanh)

    async def first(sessions: Sessions) -> None:
        session = await sessions.create("plain", name="s")
        for _ in range(3):
            await session.step(request(), some_batch, {})

    async def second(sessions: Sessions) -> None:
        session = sessions.find("s")
        assert session.state.version == 3
        (problem,) = session.problems
        assert problem.startswith("version 1 was repeated with other bits")
        assert session.describe().problems == session.problems
        assert sessions.problems == [f"session s: {problem}"]

    with_sessions(first, opened, closes=False)
    with_sessions(second, opened, models=(other, DROPPED))


def test_a_batch_that_is_damaged_is_told_and_the_newest_sound_state_served(
    tmp_path: Path,
) -> None:
    opened = folder(tmp_path / "data")
    states: dict[int, dict[str, Tensor]] = {}

    async def first(sessions: Sessions) -> None:
        session = await sessions.create("plain", name="s")
        for version in range(1, 5):
            await session.step(request(), some_batch, {})
            states[version] = whole(session.state)

    async def second(sessions: Sessions) -> None:
        session = sessions.find("s")
        assert equal(session.state, states[session.state.version])
        assert session.state.version == 3
        assert any("4" in problem for problem in session.problems)

    with_sessions(first, opened, closes=False)
    (segment,) = (tmp_path / "data").rglob("segments/*")
    content = bytearray(segment.read_bytes())
    content[-10] ^= 1
    segment.write_bytes(content)
    with_sessions(second, opened)


def test_checkpoints_outlive_the_process(tmp_path: Path) -> None:
    opened = folder(tmp_path / "data")

    async def first(sessions: Sessions) -> None:
        session = await sessions.create("plain", name="s")
        await session.step(request(), some_batch, {})
        await session.checkpoint("one", rule_state=True)

    async def second(sessions: Sessions) -> None:
        assert [info.name for info in await sessions.find("s").checkpoints()] == ["one"]
        assert (await sessions.create("plain", from_checkpoint="s/one")).state.version == 1

    with_sessions(first, opened, closes=False)
    with_sessions(second, opened)


def test_a_disk_that_takes_no_more_ends_the_sessions_writing_and_loses_nothing(
    tmp_path: Path,
) -> None:
    """The disk is full in earnest: a file may not grow beyond what this process allows itself."""
    import resource
    import signal

    from curvserve_client.errors import StorageFailed

    opened = folder(tmp_path / "data")
    before: dict[str, Tensor] = {}

    async def first(sessions: Sessions) -> None:
        session = await sessions.create("plain", name="s")
        await session.step(request("a"), some_batch, {})
        before.update(whole(session.state))
        ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (0, hard))
        try:
            with pytest.raises(StorageFailed):
                await session.step(request("b"), some_batch, {})
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
            signal.signal(signal.SIGXFSZ, ignored)
        assert equal(session.state, before)

    async def second(sessions: Sessions) -> None:
        session = sessions.find("s")
        assert equal(session.state, before) and session.problems == ()
        assert (await session.step(request("b"), some_batch, {})).version == 2

    with_sessions(first, opened, closes=False)
    with_sessions(second, opened)
    assert os.listdir(tmp_path / "data")
