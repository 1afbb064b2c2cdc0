"""A disk that is full, or fails to sync or rename: told by name, and nothing half done."""

import errno
import os
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, NoReturn

import pytest

from curvserve.sessions.storage import FolderStore, Level, NotStored, StorageFailed

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
from .worker import Workers


@pytest.fixture
def store(tmp_path: Path) -> Iterator[FolderStore]:
    opened = open_folder(tmp_path, Level.FULL)
    begin(opened)
    train(opened, 1, 3)
    opened.snapshot(NAME, snapshot_at(3))
    train(opened, 4, 5)
    yield opened
    opened.close()


def refuse(*_: object, **__: object) -> NoReturn:
    raise OSError(errno.EIO, os.strerror(errno.EIO))


def append(store: FolderStore) -> None:
    store.append(NAME, [memoryview(b"batch")])


def snapshot(store: FolderStore) -> None:
    store.snapshot(NAME, snapshot_at(5))


def checkpoint(store: FolderStore) -> None:
    store.checkpoint(NAME, "best", snapshot_at(5))


def create(store: FolderStore) -> None:
    store.create(replace(RECORD, name="other"), snapshot_at(0))


def delete(store: FolderStore) -> None:
    store.delete(NAME)


def commit(store: FolderStore) -> None:
    store.commit(NAME, change_at(6))


def fail(store: FolderStore) -> None:
    store.fail(NAME, refusal("failed"))


WRITES = [append, snapshot, checkpoint, create, delete, commit, fail]
Write = Callable[[FolderStore], None]


@pytest.mark.parametrize(
    ("call", "write"),
    [
        ("fdatasync", append),
        ("fsync", snapshot),
        ("fsync", checkpoint),
        ("fsync", create),
        ("fsync", delete),
    ],
)
def test_after_a_failed_sync_nothing_is_written_until_the_folder_is_opened_again(
    call: str, write: Write, store: FolderStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(os, call, refuse)
        with pytest.raises(StorageFailed, match="could not be synced.*Input/output") as failure:
            write(store)
    assert failure.value.broken
    for other in WRITES:
        with pytest.raises((StorageFailed, NotStored)) as refused:  # it may be deleted
            other(store)
        assert refused.type is NotStored or "nothing is written any more" in str(refused.value)
    store.close()
    if write is not delete:
        check_unchanged(tmp_path)


def check_unchanged(folder: Path, version: int = 5) -> None:
    reopened = open_folder(folder)
    recovered = reopened.recover()
    reopened.close()
    assert recovered.problems == ()
    for stored in recovered.sessions:
        if stored.record.name == "other":
            assert stored.version == 0  # its creation was not known to have failed
        else:
            assert (stored.version, stored.problems) == (version, ())
            assert knows_every_key(stored)


@pytest.mark.parametrize("write", [snapshot, checkpoint, create, delete])
def test_after_a_failed_rename_all_is_as_before(
    write: Write, store: FolderStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = files(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", refuse)
        with pytest.raises(StorageFailed, match="Input/output") as failure:
            write(store)
    assert not failure.value.broken
    assert files(tmp_path) == before
    write(store)
    if write is not delete:
        take_step(store, 6)
        store.close()
        check_unchanged(tmp_path, 6)


def files(folder: Path) -> set[Path]:
    return {path for path in (folder / "sessions").rglob("*") if path.is_file()}


@pytest.mark.parametrize("write", [append, snapshot, checkpoint, create])
def test_a_full_disk_is_told_and_the_store_goes_on_when_there_is_room(
    write: Write, store: FolderStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def take_little(descriptor: int, data: Any) -> int:
        if len(data) < 10:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return real_write(descriptor, data[: len(data) // 2])

    real_write = os.write
    with monkeypatch.context() as patch:
        patch.setattr(os, "write", take_little)
        with pytest.raises(StorageFailed, match="No space left") as failure:
            write(store)
    assert not failure.value.broken
    write(store)
    take_step(store, 6)
    store.close()
    check_unchanged(tmp_path, 6)


@pytest.mark.parametrize("level", [Level.FULL, Level.PROCESS, Level.SNAPSHOT])
@pytest.mark.parametrize("size", [3_000, 40_000, 90_000, 200_000])
def test_files_that_may_not_grow_lose_no_acknowledged_step(
    size: int, level: Level, tmp_path: Path, workers: Workers
) -> None:
    first = workers.run("train", tmp_path, level, steps=4)
    assert first.status == 0
    ended = workers.run("train", tmp_path, level, steps=3000, file_size=size)
    assert ended.status == 1
    assert ended.said[-1][0] == "StorageFailed"
    stored = found_again(tmp_path, level)
    assert ended.last("durable", 4) <= stored.version <= ended.last("committed", 4) + 1
    assert stored.problems == ()
    assert knows_every_key(stored)


@contextmanager
def small_disk(folder: Path) -> Iterator[dict[str, int]]:
    """Make a folder a full disk of 400 KB, where root may; elsewhere its files may not grow."""
    mount = ["mount", "-t", "tmpfs", "-o", "size=400k", "tmpfs", str(folder)]
    if subprocess.run(mount, capture_output=True).returncode:
        yield {"file_size": 100_000}
        return
    try:
        yield {}
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def test_a_full_disk_loses_no_acknowledged_step(tmp_path: Path, workers: Workers) -> None:
    with small_disk(tmp_path) as limits:
        ended = workers.run("train", tmp_path, steps=10_000, **limits)
        assert ended.status == 1
        assert ended.said[-1][0] == "StorageFailed"
        if not limits:
            grow = ["mount", "-o", "remount,size=4m", str(tmp_path)]
            subprocess.run(grow, check=True)
        stored = found_again(tmp_path, Level.FULL)
        assert ended.last("durable", 0) <= stored.version <= ended.last("committed", 0) + 1
        assert stored.problems == ()


def test_a_commit_that_fails_leaves_the_truth_to_the_journal(
    store: FolderStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The mark fails, which comes after the commit: the step is refused, and found again."""
    change = change_at(6, store.append(NAME, [memoryview(batch(6))]))
    with monkeypatch.context() as patch:
        patch.setattr(os, "write", refuse)
        with pytest.raises(StorageFailed) as failure:
            store.commit(NAME, change)
    assert failure.value.broken
    store.close()
    stored = found_again(tmp_path)
    assert (stored.version, stored.answered[-1].key) == (6, "key-6")
