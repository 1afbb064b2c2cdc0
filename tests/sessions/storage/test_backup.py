"""A backup is the folder at one moment, whatever becomes of the folder afterwards."""

from pathlib import Path

import pytest

from curvserve.sessions.storage import Backup, Level, MemoryStore, NotStored

from .training import NAME, begin, found_again, knows_every_key, open_folder, snapshot_at, train


def unpack(backup: Backup, folder: Path) -> Path:
    for file in backup.files:
        target = folder / file.name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(file.file.read(file.size))
    return folder


@pytest.mark.parametrize("level", [Level.FULL, Level.PROCESS, Level.SNAPSHOT])
def test_a_backup_holds_the_versions_of_its_moment(level: Level, tmp_path: Path) -> None:
    store = open_folder(tmp_path / "data", level)
    begin(store)
    train(store, 1, 5)
    store.snapshot(NAME, snapshot_at(5))
    train(store, 6, 8)
    with store.backup() as backup:
        train(store, 9, 20)  # into the segment that the backup reads
        for version in (18, 19, 20):  # what the backup reads is removed
            store.snapshot(NAME, snapshot_at(version))
        copy = unpack(backup, tmp_path / "copy")
    store.close()
    restored = found_again(copy, level)
    assert restored.problems == () and knows_every_key(restored)
    assert restored.version == (5 if level is Level.SNAPSHOT else 8)
    assert found_again(tmp_path / "data", level).version == 20


def test_a_backup_outlives_its_sessions(tmp_path: Path) -> None:
    store = open_folder(tmp_path / "data")
    begin(store)
    train(store, 1, 3)
    store.checkpoint(NAME, "third", snapshot_at(3))
    with store.backup() as backup:
        store.delete(NAME)
        store.close()
        copy = unpack(backup, tmp_path / "copy")
    assert found_again(copy).version == 3
    again = open_folder(copy)
    again.recover()
    assert [found.name for found in again.checkpoints(NAME)] == ["third"]
    again.close()


def test_nothing_is_left_of_a_backup_and_nothing_unfinished_is_in_it(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    store = open_folder(folder)
    begin(store)
    for leftover in (".new-half@1234", ".deleted-gone@1234"):
        (folder / "sessions" / leftover).mkdir()
        (folder / "sessions" / leftover / "newest").write_bytes(b"0")
    (folder / ".backup.sqlite").write_bytes(b"of a backup that a crash interrupted")
    store.close()
    store = open_folder(folder)
    assert not (folder / ".backup.sqlite").exists()
    before = sorted(folder.rglob("*"))
    with store.backup() as backup:
        names = [file.name for file in backup.files]
    assert sorted(folder.rglob("*")) == before
    assert names[0] == "journal.sqlite"
    assert all(name.startswith(f"sessions/{NAME}@") for name in names[1:])
    store.close()


def test_where_nothing_is_kept_there_is_no_backup() -> None:
    with pytest.raises(NotStored, match="no data folder"):
        MemoryStore().backup()
