"""Damaged files: the newest sound state is found, and whatever is missing is told."""

import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from curvserve.sessions.storage import (
    REMEMBERED,
    Damaged,
    Level,
    Recovered,
    StorageError,
    StorageFailed,
    UnknownFormat,
)

from .training import (
    NAME,
    RECORD,
    begin,
    change_at,
    check,
    knows_every_key,
    open_folder,
    refusal,
    snapshot_at,
    take_step,
    train,
)

NEWEST = 14
MEMORY = "/dev/shm" if Path("/dev/shm").is_dir() else None  # many examples, and no need to sync
EXAMPLES = settings(max_examples=60, deadline=None)


def write(folder: Path, level: Level = Level.PROCESS) -> Path:
    """Write a training and return what lies on the disk while its process still runs."""
    store = open_folder(folder / "closed", level)
    begin(store)
    for version in range(1, NEWEST + 1):
        take_step(store, version)
        if version in (3, 5, 10):
            store.snapshot(NAME, snapshot_at(version))
    store.fail(NAME, refusal("failed"))
    store.checkpoint(NAME, "best", snapshot_at(NEWEST))
    shutil.copytree(folder / "closed", folder / "running")
    store.close()
    return folder


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("written"))


@contextmanager
def copy_of(folder: Path) -> Iterator[Path]:
    with tempfile.TemporaryDirectory(dir=MEMORY) as place:
        shutil.copytree(folder, Path(place) / "data")
        yield Path(place) / "data"


def session_file(folder: Path, pattern: str) -> Path:
    (session,) = (folder / "sessions").iterdir()
    return sorted(session.glob(pattern))[-1]


Damage = Callable[[bytearray], None]


@st.composite
def damages(draw: st.DrawFn) -> Damage:
    """Return a damage: a bit flipped, a stretch of zeros, or an end cut off, anywhere."""
    kind = draw(st.sampled_from(["flip", "flip", "zero", "cut"]))
    place = draw(st.floats(0, 1, exclude_max=True))
    bit, length = draw(st.integers(0, 7)), draw(st.integers(1, 5000))

    def damage(content: bytearray) -> None:
        offset = int(place * len(content))
        if kind == "flip":
            content[offset] ^= 1 << bit
        elif kind == "zero":
            content[offset : offset + length] = bytes(len(content[offset : offset + length]))
        else:
            del content[offset:]

    return damage


def apply(damage: Damage, file: Path) -> bool:
    """Damage a file; return whether it is another one then."""
    content = bytearray(file.read_bytes())
    before = bytes(content)
    damage(content)
    file.write_bytes(content)
    return content != before


def recover(folder: Path) -> Recovered:
    """Return what a folder gives back, held against the training."""
    store = open_folder(folder)
    try:
        recovered = store.recover()
        for stored in recovered.sessions:
            check(store, stored)
        return recovered
    finally:
        store.close()


def problems(recovered: Recovered) -> list[str]:
    return [*recovered.problems, *(p for stored in recovered.sessions for p in stored.problems)]


def is_whole(recovered: Recovered) -> bool:
    """Tell whether nothing is missing."""
    (stored,) = recovered.sessions
    return stored.version == NEWEST and knows_every_key(stored)


def goes_on(folder: Path) -> None:
    """Train on from where a folder is found, and find that again, without new problems."""
    store = open_folder(folder)
    (stored,) = store.recover().sessions
    version = check(store, stored)
    train(store, version + 1, NEWEST + 3)
    store.snapshot(NAME, snapshot_at(NEWEST + 3))
    take_step(store, NEWEST + 4)
    store.close()
    recovered = recover(folder)
    (stored,) = recovered.sessions
    assert stored.version == NEWEST + 4
    assert recovered.problems == ()
    assert all("lost" not in problem for problem in stored.problems)


@pytest.mark.parametrize("state", ["closed", "running"])
@pytest.mark.parametrize("pattern", ["snapshots/*", "segments/*", "newest"])
@EXAMPLES
@given(damage=damages())
def test_a_damaged_file_of_a_session_is_never_taken_for_its_state(
    state: str, pattern: str, written: Path, damage: Damage
) -> None:
    with copy_of(written / state) as folder:
        apply(damage, session_file(folder, pattern))
        recovered = recover(folder)
        assert is_whole(recovered) or problems(recovered)
        goes_on(folder)


@pytest.mark.parametrize(
    ("state", "name"),
    [
        ("closed", "journal.sqlite"),
        ("running", "journal.sqlite"),
        ("running", "journal.sqlite-wal"),
    ],
)
@EXAMPLES
@given(damage=damages())
def test_a_damaged_journal_loses_nothing_in_silence(
    state: str, name: str, written: Path, damage: Damage
) -> None:
    with copy_of(written / state) as folder:
        apply(damage, folder / name)
        try:
            recovered = recover(folder)
        except UnknownFormat as error:
            assert "expected 1" in str(error)  # the damage hit the format's number
            return
        assert is_whole(recovered) or problems(recovered)
        goes_on(folder)


@EXAMPLES
@given(damage=damages())
def test_a_damaged_checkpoint_is_told(written: Path, damage: Damage) -> None:
    with copy_of(written / "closed") as folder:
        is_other = apply(damage, session_file(folder, "checkpoints/*"))
        store = open_folder(folder)
        recovered = store.recover()
        assert is_whole(recovered)
        if store.checkpoints(NAME):
            assert store.checkpoints(NAME)[0].version == NEWEST
        else:
            assert any("checkpoint cannot be read" in text for text in problems(recovered))
        if is_other:
            with pytest.raises(Damaged, match="best.safetensors is damaged"):
                store.read_checkpoint(NAME, "best")
        store.close()


def test_a_damaged_snapshot_is_put_aside_and_the_older_one_used(written: Path) -> None:
    with copy_of(written / "closed") as folder:
        newest = session_file(folder, "snapshots/*")
        content = bytearray(newest.read_bytes())
        content[-1] ^= 1
        newest.write_bytes(content)
        (stored,) = recover(folder).sessions
        assert (stored.snapshot.version, stored.version) == (5, NEWEST)
        (problem,) = stored.problems
        assert f"{newest.name} is damaged at byte" in problem
        assert "put aside as 0000000010.safetensors.damaged" in problem
        (stored,) = recover(folder).sessions
        assert stored.problems == ()
        goes_on(folder)


def test_a_session_without_a_sound_snapshot_is_named_and_the_others_served(written: Path) -> None:
    with copy_of(written / "closed") as folder:
        store = open_folder(folder)
        store.recover()
        store.delete(NAME)
        begin(store)
        store.close()
        session_file(folder, "snapshots/*").write_bytes(b"")
        store = open_folder(folder)
        (problem,) = store.recover().problems
        assert problem.startswith("a session cannot be served")
        assert NAME in problem
        with pytest.raises(StorageError, match="is kept in"):
            store.create(RECORD, snapshot_at(0))
        store.close()


def test_a_batch_that_cannot_be_read_ends_the_replay_before_it(written: Path) -> None:
    with copy_of(written / "closed") as folder:
        store = open_folder(folder)
        (stored,) = store.recover().sessions
        ref = stored.changes[1].batches[0]
        store.close()
        file = session_file(folder, "segments/*")
        content = bytearray(file.read_bytes())
        content[ref.offset + 30] ^= 4
        file.write_bytes(content)
        (stored,) = recover(folder).sessions
        assert stored.version == 11
        (problem,) = stored.problems
        assert problem.startswith("versions 12 to 14 are lost")
        assert f"{file.name} is damaged at byte {ref.offset}" in problem
        assert not any(answered.version > 11 for answered in stored.answered)
        goes_on(folder)


def test_a_torn_end_of_a_segment_is_no_problem(written: Path) -> None:
    with copy_of(written / "running") as folder:
        with session_file(folder, "segments/*").open("ab") as file:
            file.write(b"CURVSEG1" + bytes(11))
        recovered = recover(folder)
        assert (is_whole(recovered), problems(recovered)) == (True, [])
        goes_on(folder)


def test_a_row_that_was_changed_is_told_and_not_replayed(written: Path) -> None:
    with copy_of(written / "closed") as folder:
        journal = folder / "journal.sqlite"
        content = journal.read_bytes()
        assert content.count(b'{"lr": 0.1}') >= NEWEST
        journal.write_bytes(content.replace(b'{"lr": 0.1}', b'{"lr": 0.2}'))
        (stored,) = recover(folder).sessions
        assert (stored.version, stored.answered) == (10, ())
        told = " ".join(stored.problems)
        assert "14 rows of the journal do not match their checksum" in told
        assert "versions 11 to 14 are lost" in told
        assert "10 of versions 1 to 10 are no longer known by key" in told


def test_a_folder_of_a_session_that_is_gone_is_told(written: Path) -> None:
    with copy_of(written / "closed") as folder:
        shutil.rmtree(session_file(folder, "snapshots").parent)
        recovered = recover(folder)
        assert recovered.sessions == ()
        (problem,) = recovered.problems
        assert f"changes of {NAME}@" in problem


def test_a_journal_that_is_gone_is_told(written: Path) -> None:
    with copy_of(written / "closed") as folder:
        (folder / "journal.sqlite").unlink()
        (stored,) = recover(folder).sessions
        assert stored.version == 10
        assert "versions 11 to 14 are lost" in stored.problems[0]
        goes_on(folder)


def test_at_level_snapshot_a_damaged_snapshot_is_told_as_lost(tmp_path: Path) -> None:
    write(tmp_path, Level.SNAPSHOT)
    folder = tmp_path / "closed"
    session_file(folder, "snapshots/*").write_bytes(b"")
    (stored,) = recover(folder).sessions
    assert stored.version == 5
    assert any("versions 6 to 10 are lost" in problem for problem in stored.problems)
    goes_on(folder)


def test_keys_of_lost_changes_do_not_come_back_as_those_of_later_ones(tmp_path: Path) -> None:
    """At level `snapshot` only the newest changes wait for the snapshot; none of the lost stay."""
    write(tmp_path)
    folder = tmp_path / "closed"
    session_file(folder, "segments/*").unlink()
    last = 10 + REMEMBERED + 4
    store = open_folder(folder, Level.SNAPSHOT)
    (stored,) = store.recover().sessions
    assert stored.version == 10
    for version in range(11, last + 1):
        store.commit(NAME, change_at(version, key=f"new-{version}"))
    store.snapshot(NAME, snapshot_at(last))
    store.close()
    store = open_folder(folder)
    (stored,) = store.recover().sessions
    store.close()
    known = {answered.key for answered in stored.answered}
    assert known == {f"new-{version}" for version in range(15, last + 1)}


def test_a_journal_of_another_format_is_refused_and_stays_as_it_is(written: Path) -> None:
    with copy_of(written / "closed") as folder:
        journal = folder / "journal.sqlite"
        content = bytearray(journal.read_bytes())
        content[60:64] = (2).to_bytes(4, "big")
        journal.write_bytes(content)
        with pytest.raises(UnknownFormat, match="format 2, expected 1"):
            open_folder(folder)
        assert journal.read_bytes() == content


def test_a_folder_that_is_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "data").write_text("")
    with pytest.raises(StorageFailed, match="the data folder .*data cannot be used"):
        open_folder(tmp_path / "data")
