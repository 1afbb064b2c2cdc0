"""SIGKILL at every place and at any moment: what was acknowledged is found again, bit by bit."""

import random
import signal
from pathlib import Path

import pytest

from curvserve.sessions.storage import Level

from .training import NAME, RECORD, begin, found_again, knows_every_key, open_folder, snapshot_at
from .worker import Ended, Workers

KILLED = -signal.SIGKILL
STEP = ("before_segment_sync", "after_segment_sync", "before_commit", "after_commit")
SNAPSHOT = ("mid_snapshot", "before_snapshot_rename", "after_snapshot_rename")


def check_acknowledged(ended: Ended, folder: Path, level: Level, before: int = 0) -> int:
    """Hold a folder against what a killed process had acknowledged; return the version found."""
    stored = found_again(folder, level)
    durable = ended.last("durable", before)
    assert durable <= stored.version <= ended.last("committed", before) + 1
    assert stored.problems == ()
    assert knows_every_key(stored)
    return stored.version


@pytest.mark.parametrize("level", [Level.FULL, Level.PROCESS, Level.SNAPSHOT])
@pytest.mark.parametrize("failpoint", [*STEP, *SNAPSHOT])
def test_no_step_is_lost_at_a_failpoint(
    failpoint: str, level: Level, tmp_path: Path, workers: Workers
) -> None:
    if level is Level.SNAPSHOT and failpoint in STEP[:2]:
        failpoint = "before_commit"  # no segments there
    killed = workers.run("train", tmp_path, level, failpoint=f"{failpoint}:3")
    assert killed.status == KILLED
    version = check_acknowledged(killed, tmp_path, level)
    ended = workers.run("train", tmp_path, level, steps=8)
    assert ended.status == 0
    check_acknowledged(ended, tmp_path, level, version)


@pytest.mark.parametrize("level", [Level.FULL, Level.PROCESS, Level.SNAPSHOT])
def test_no_step_is_lost_at_any_moment(level: Level, tmp_path: Path, workers: Workers) -> None:
    moments, version = random.Random(level), 0
    for _ in range(10):
        moment = moments.uniform(0.002, 0.15)
        killed = workers.run("train", tmp_path, level, steps=10_000, kill_after=moment)
        assert killed.status == KILLED
        if killed.said or version:
            version = check_acknowledged(killed, tmp_path, level, version)


@pytest.mark.parametrize("failpoint", SNAPSHOT)
def test_a_session_is_there_whole_or_not_at_all(
    failpoint: str, tmp_path: Path, workers: Workers
) -> None:
    assert workers.run("train", tmp_path, failpoint=failpoint).status == KILLED
    store = open_folder(tmp_path)
    recovered = store.recover()
    assert (recovered.sessions, recovered.problems) == ((), ())
    assert list((tmp_path / "sessions").iterdir()) == []
    store.create(RECORD, snapshot_at(0))
    store.close()
    assert found_again(tmp_path).version == 0


def test_a_deleted_session_never_comes_back_into_its_namesake(
    tmp_path: Path, workers: Workers
) -> None:
    moments = random.Random(0)
    for _ in range(15):
        moment = moments.uniform(0.01, 0.1)
        killed = workers.run("remake", tmp_path, Level.PROCESS, kill_after=moment)
        assert killed.status == KILLED
        store = open_folder(tmp_path)
        recovered = store.recover()
        assert recovered.problems == ()
        assert all(stored.version <= 2 for stored in recovered.sessions)
        folders = [path.name.split("@")[0] for path in (tmp_path / "sessions").iterdir()]
        assert folders == [NAME] * len(recovered.sessions)
        store.close()
        if recovered.sessions:
            assert found_again(tmp_path).problems == ()


def test_an_interrupted_deletion_is_finished(tmp_path: Path) -> None:
    store = open_folder(tmp_path)
    begin(store)
    store.close()
    (folder,) = (tmp_path / "sessions").iterdir()
    folder.rename(folder.with_name(f".deleted-{folder.name}"))
    store = open_folder(tmp_path)
    recovered = store.recover()
    assert (recovered.sessions, recovered.problems) == ((), ())
    store.create(RECORD, snapshot_at(0))
    store.close()


def test_the_folder_of_a_running_process_is_refused(tmp_path: Path, workers: Workers) -> None:
    store = open_folder(tmp_path)
    refused = workers.run("open_and_close", tmp_path)
    ((kind, message),) = refused.said
    assert kind == "FolderInUse"
    assert str(tmp_path) in message
    assert "belongs to process" in message
    store.close()
    assert workers.run("open_and_close", tmp_path).said == []
