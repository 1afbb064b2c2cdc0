"""What every store does, whatever its level, and what a folder gives back when opened again."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from curvserve.sessions.storage import (
    REMEMBERED,
    Damaged,
    JournalConflict,
    Level,
    MemoryStore,
    NameTaken,
    NotStored,
    Snapshot,
    Store,
    decode_state,
    open_store,
)
from curvserve.sessions.storage import segments as segment_files

from .training import (
    NAME,
    RECORD,
    batch,
    begin,
    change_at,
    found_again,
    knows_every_key,
    open_folder,
    refusal,
    snapshot_at,
    take_step,
    train,
)

ON_DISK = [Level.FULL, Level.PROCESS, Level.SNAPSHOT]
JOURNALLED = [Level.FULL, Level.PROCESS]


@pytest.fixture(params=Level)
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Store]:
    opened = open_store(tmp_path / "data", request.param, {})
    begin(opened)
    yield opened
    opened.close()


def test_an_empty_store_has_no_sessions(tmp_path: Path) -> None:
    for level in Level:
        opened = open_store(tmp_path / level, level, {})
        assert opened.recover().sessions == ()
        opened.close()


def test_the_level_none_touches_no_disk(tmp_path: Path) -> None:
    opened = open_store(tmp_path / "data", Level.NONE, {})
    begin(opened)
    train(opened, 1, 3)
    opened.snapshot(NAME, snapshot_at(3))
    assert isinstance(opened, MemoryStore)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("level", "after_steps", "after_snapshot"),
    [(Level.FULL, 3, 3), (Level.PROCESS, 3, 3), (Level.SNAPSHOT, 0, 3), (Level.NONE, None, None)],
)
def test_the_durable_version_is_told(
    level: Level, after_steps: int | None, after_snapshot: int | None, tmp_path: Path
) -> None:
    opened = open_store(tmp_path / "data", level, {})
    begin(opened)
    assert [take_step(opened, version) for version in (1, 2, 3)][-1] == after_steps
    assert opened.snapshot(NAME, snapshot_at(3)) == after_snapshot
    opened.close()


def test_a_change_must_follow_the_newest(store: Store) -> None:
    train(store, 1, 2)
    for version in (1, 2, 4):
        with pytest.raises(JournalConflict, match="does not follow 2"):
            store.commit(NAME, change_at(version))
    train(store, 3, 4)


@pytest.mark.parametrize("level", ON_DISK)
@pytest.mark.parametrize("with_snapshot", [True, False])
def test_a_key_is_committed_once(level: Level, with_snapshot: bool, tmp_path: Path) -> None:
    opened = open_folder(tmp_path, level)
    begin(opened)
    train(opened, 1, 2)
    if with_snapshot:
        opened.snapshot(NAME, snapshot_at(2))
    with pytest.raises(JournalConflict):
        opened.commit(NAME, change_at(3, key="key-1"))
    train(opened, 3, 3)
    opened.snapshot(NAME, snapshot_at(3))
    opened.close()
    assert found_again(tmp_path).version == 3


def test_a_snapshot_of_what_is_not_committed_is_refused(tmp_path: Path) -> None:
    opened = open_folder(tmp_path)
    begin(opened)
    with pytest.raises(JournalConflict, match="version 1 .* is not committed"):
        opened.snapshot(NAME, snapshot_at(1))
    opened.close()


def test_a_name_belongs_to_one_living_session(store: Store) -> None:
    with pytest.raises(NameTaken):
        store.create(RECORD, snapshot_at(0))
    store.delete(NAME)
    with pytest.raises(NotStored):
        store.commit(NAME, change_at(1))
    store.create(RECORD, snapshot_at(0))
    train(store, 1, 2)


@pytest.mark.parametrize("name", ["", ".hidden", "a/b", "../up", "a" * 65, "a@b", "ä"])
def test_a_name_that_is_no_name_is_refused(store: Store, name: str) -> None:
    with pytest.raises(ValueError, match="is no name"):
        store.create(replace(RECORD, name=name), snapshot_at(0))
    with pytest.raises(ValueError, match="is no name"):
        store.checkpoint(NAME, name, snapshot_at(0))


def test_a_checkpoint_is_kept_under_its_name_for_good(store: Store) -> None:
    train(store, 1, 2)
    first = store.checkpoint(NAME, "a", snapshot_at(2))
    take_step(store, 3)
    bare = replace(snapshot_at(3), tensors={"parameters": snapshot_at(3).tensors["parameters"]})
    second = store.checkpoint(NAME, "b.best-1", bare)
    assert store.checkpoints(NAME) == [first, second]
    assert (first.version, first.with_rule_state) == (2, True)
    assert (second.version, second.with_rule_state) == (3, False)
    with pytest.raises(NameTaken):
        store.checkpoint(NAME, "a", snapshot_at(3))
    body = store.read_checkpoint(NAME, "a")
    state = decode_state(body)
    assert (len(body), state.snapshot.version) == (first.size, 2)
    assert torch.equal(
        state.snapshot.tensors["rule"]["momentum.w"], -snapshot_at(2).tensors["parameters"]["w"]
    )
    with pytest.raises(NotStored):
        store.read_checkpoint(NAME, "c")


def test_who_began_a_session_is_found_again(tmp_path: Path) -> None:
    opened = open_folder(tmp_path, Level.FULL)
    opened.create(replace(RECORD, owner="loop"), snapshot_at(0))
    opened.close()
    again = open_folder(tmp_path, Level.FULL)
    (stored,) = again.recover().sessions
    again.close()
    assert stored.record == replace(RECORD, owner="loop")


def test_a_snapshot_from_before_there_were_owners_is_read(tmp_path: Path) -> None:
    opened = open_folder(tmp_path, Level.FULL)
    begin(opened)
    train(opened, 1, 3)
    opened.snapshot(NAME, snapshot_at(3))
    train(opened, 4, 5)
    opened.close()
    older = Path(__file__).with_name("state_before_owners.safetensors").read_bytes()
    assert b"owner" not in older
    (snapshot,) = tmp_path.rglob("0000000003.safetensors")
    snapshot.write_bytes(older)
    stored = found_again(tmp_path)
    assert (stored.version, stored.snapshot.version, stored.problems) == (5, 3, ())


def test_what_there_is_not_is_told(store: Store) -> None:
    with pytest.raises(NotStored):
        store.append("nobody", [])
    with pytest.raises(NotStored):
        store.checkpoints("nobody")
    with pytest.raises(NotStored):
        store.delete("nobody")


@pytest.mark.parametrize("level", JOURNALLED)
@pytest.mark.parametrize("snapshot", [None, 0, 3, 5])
def test_every_step_is_found_again(level: Level, snapshot: int | None, tmp_path: Path) -> None:
    opened = open_folder(tmp_path, level)
    begin(opened)
    for version in range(1, 6):
        take_step(opened, version)
        if version == snapshot:
            opened.snapshot(NAME, snapshot_at(version))
    opened.close()
    stored = found_again(tmp_path)
    assert (stored.version, stored.snapshot.version) == (5, snapshot or 0)
    assert stored.problems == ()
    assert knows_every_key(stored)


def test_at_level_snapshot_what_follows_the_snapshot_is_lost_with_its_keys(tmp_path: Path) -> None:
    opened = open_folder(tmp_path, Level.SNAPSHOT)
    begin(opened)
    train(opened, 1, 3)
    opened.snapshot(NAME, snapshot_at(3))
    train(opened, 4, 6)
    opened.close()
    stored = found_again(tmp_path)
    assert (stored.version, stored.problems) == (3, ())
    assert knows_every_key(stored)


def test_a_level_may_change_from_one_opening_to_the_next(tmp_path: Path) -> None:
    first = 1
    for level in (Level.FULL, Level.SNAPSHOT, Level.PROCESS, Level.SNAPSHOT, Level.FULL):
        opened = open_folder(tmp_path, level)
        if first == 1:
            begin(opened)
        else:
            opened.recover()
        train(opened, first, first + 2)
        if level is Level.SNAPSHOT:
            opened.snapshot(NAME, snapshot_at(first + 2))
        first += 3
        opened.close()
        stored = found_again(tmp_path)
        assert (stored.version, stored.problems) == (first - 1, ())
        assert knows_every_key(stored)


def test_a_change_may_have_no_batch_or_several(tmp_path: Path) -> None:
    opened = open_folder(tmp_path)
    begin(opened)
    refs = [opened.append(NAME, [memoryview(part)]) for part in (b"one", b"", b"three")]
    opened.commit(NAME, replace(change_at(1, *refs), kind="optim_step"))
    opened.commit(NAME, replace(change_at(2), kind="load"))
    opened.close()
    opened = open_folder(tmp_path)
    (stored,) = opened.recover().sessions
    first, second = stored.changes
    assert [opened.read(NAME, ref) for ref in first.batches] == [b"one", b"", b"three"]
    assert (first.kind, second.kind, second.batches) == ("optim_step", "load", ())
    opened.close()


@pytest.mark.parametrize("level", ON_DISK)
def test_refused_requests_are_kept_and_do_not_take_their_key(level: Level, tmp_path: Path) -> None:
    opened = open_folder(tmp_path, level)
    begin(opened)
    opened.fail(NAME, refusal("key-1"))
    opened.fail(NAME, refusal("key-1"))
    train(opened, 1, 1)
    opened.snapshot(NAME, snapshot_at(1))
    opened.close()
    stored = found_again(tmp_path)
    assert [failed.key for failed in stored.failed] == ["key-1", "key-1"]
    assert stored.failed[0].problem == refusal("").problem
    assert knows_every_key(stored)


def test_the_newest_keys_are_answered_and_the_rest_goes(tmp_path: Path) -> None:
    opened = open_folder(tmp_path)
    begin(opened)
    last = REMEMBERED + 30
    for version in range(1, last + 1):
        take_step(opened, version)
        opened.fail(NAME, refusal(f"failed-{version}"))
        if version in (last - 20, last - 10):
            opened.snapshot(NAME, snapshot_at(version))
    opened.close()
    stored = found_again(tmp_path)
    assert (stored.version, len(stored.answered), len(stored.changes)) == (last, REMEMBERED, 10)
    assert (stored.problems, len(stored.failed)) == ((), REMEMBERED)
    assert knows_every_key(stored)


def test_old_snapshots_and_segments_go_and_pending_batches_stay(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(segment_files, "LIMIT", 100)  # two records a file
    opened = open_folder(tmp_path)
    begin(opened)
    train(opened, 1, 4)
    pending = opened.append(NAME, [memoryview(b"pending")])
    train(opened, 5, 20)
    for version in (18, 19, 20):
        opened.snapshot(NAME, snapshot_at(version), pending=[pending])
    (folder,) = (tmp_path / "sessions").iterdir()
    assert len(list((folder / "snapshots").iterdir())) == 2
    numbers = sorted(int(file.stem) for file in (folder / "segments").iterdir())
    assert opened.read(NAME, pending) == b"pending"
    assert numbers[0] == pending.segment
    opened.snapshot(NAME, snapshot_at(20))
    assert len(list((folder / "segments").iterdir())) == 1
    with pytest.raises(Damaged, match=r"00000003\.segment is damaged"):
        opened.read(NAME, pending)
    opened.close()
    assert found_again(tmp_path).version == 20


def test_a_session_may_begin_at_any_version(tmp_path: Path) -> None:
    opened = open_folder(tmp_path)
    opened.recover()
    assert opened.create(RECORD, snapshot_at(100)) == 100
    train(opened, 101, 103)
    opened.snapshot(NAME, snapshot_at(103))
    opened.close()
    stored = found_again(tmp_path)
    assert (stored.version, stored.problems, len(stored.answered)) == (103, (), 3)


def test_sessions_do_not_mix(tmp_path: Path) -> None:
    opened = open_folder(tmp_path)
    begin(opened)
    other = replace(RECORD, name="other", seed=2**63 - 1)
    opened.create(other, Snapshot(0, 0, {"parameters": {}}))
    opened.commit("other", change_at(1))
    train(opened, 1, 3)
    opened.delete("other")
    opened.create(other, Snapshot(5, 0, {"parameters": {}}))
    opened.close()
    opened = open_folder(tmp_path)
    mine, theirs = sorted(opened.recover().sessions, key=lambda s: s.record.name, reverse=True)
    assert (mine.version, theirs.version, theirs.answered) == (3, 5, ())
    assert theirs.record == other
    opened.close()


def test_every_dtype_and_shape_comes_back_bit_by_bit(tmp_path: Path) -> None:
    strange = torch.tensor([float("nan"), -0.0, float("inf"), 1e-45])
    tensors = {
        "parameters": {"a.b": strange, "c": strange.double(), "d": strange.bfloat16()},
        "buffers": {"steps": torch.tensor(3), "mask": torch.tensor([[True], [False]])},
        "rule": {"v.a.b": torch.empty(0, 5), "t": torch.arange(6).view(2, 3).t()},
    }
    opened = open_folder(tmp_path)
    opened.recover()
    opened.create(RECORD, Snapshot(0, 0, tensors, {"damping": 0.1, "count": 3}))
    opened.close()
    opened = open_folder(tmp_path)
    (stored,) = opened.recover().sessions
    opened.close()
    assert stored.snapshot.scalars == {"damping": 0.1, "count": 3}
    for group, members in tensors.items():
        assert stored.snapshot.tensors[group].keys() == members.keys()
        for name, tensor in members.items():
            back = stored.snapshot.tensors[group][name]
            assert (back.dtype, back.shape) == (tensor.dtype, tensor.shape)
            left, right = back.contiguous().view(-1), tensor.contiguous().view(-1)
            assert torch.equal(left.view(torch.uint8), right.view(torch.uint8))


def test_each_opening_is_an_epoch_that_says_what_computes(tmp_path: Path) -> None:
    opened = open_store(tmp_path, Level.FULL, {"torch": "2.14", "threads": "1"})
    begin(opened)
    take_step(opened, 1)
    opened.close()
    opened = open_store(tmp_path, Level.FULL, {"torch": "2.14", "threads": "2"})
    recovered = opened.recover()
    (stored,) = recovered.sessions
    assert [recovered.epochs[epoch]["threads"] for epoch in (1, 2)] == ["1", "2"]
    assert (stored.snapshot.epoch, stored.changes[0].epoch) == (1, 1)
    assert stored.changes[0].time
    take_step(opened, 2)
    opened.close()
    assert [change.epoch for change in found_again(tmp_path).changes] == [1, 2]


def test_a_batch_is_given_back_from_several_parts(tmp_path: Path) -> None:
    opened = open_folder(tmp_path)
    begin(opened)
    parts = [memoryview(batch(1)), memoryview(b""), memoryview(torch.arange(5).numpy())]
    ref = opened.append(NAME, parts)
    assert opened.read(NAME, ref) == b"".join(bytes(part) for part in parts)
    opened.close()
