"""A training whose every version is known: what a store gives back can be held against it."""

import hashlib
from pathlib import Path

import torch
from torch import Tensor

from curvserve.sessions.storage import (
    REMEMBERED,
    BatchRef,
    Change,
    FailedChange,
    FolderStore,
    Level,
    SessionRecord,
    Snapshot,
    Store,
    Stored,
    digest,
)

NAME = "training"
SIZE = 24
RECORD = SessionRecord(NAME, "line", 7, "sgd", {"lr": 0.1}, "2026-01-01T00:00:00+00:00")


def batch(version: int) -> bytes:
    """Return the batch of the step to a version."""
    return hashlib.shake_128(str(version).encode()).digest(SIZE)


def step(state: Tensor, body: bytes | bytearray) -> Tensor:
    """Return the state after a step on a batch."""
    return state * 0.75 + torch.frombuffer(bytearray(body), dtype=torch.uint8)


_states = [torch.zeros(SIZE)]


def state_at(version: int) -> Tensor:
    """Return the only right state of a version."""
    while len(_states) <= version:
        _states.append(step(_states[-1], batch(len(_states))))
    return _states[version]


def snapshot_of(state: Tensor, version: int) -> Snapshot:
    tensors = {"parameters": {"w": state}, "buffers": {}, "rule": {"momentum.w": -state}}
    return Snapshot(version, version, tensors, {"damping": 1 / 3})


def snapshot_at(version: int) -> Snapshot:
    return snapshot_of(state_at(version), version)


def change_at(version: int, *refs: BatchRef, key: str = "") -> Change:
    key = key or f"key-{version}"
    right = snapshot_at(version)
    return Change(
        version=version,
        key=key,
        fingerprint=hashlib.sha256(key.encode()).digest(),
        kind="step",
        options={"lr": 0.1},
        batches=refs,
        answer={"version": version, "loss": version / 7},
        digest=digest(right.tensors, right.scalars),
    )


def refusal(key: str) -> FailedChange:
    return FailedChange(key, b"fingerprint", "step", {"code": "non_finite", "detail": "NaN"})


def begin(store: Store) -> None:
    store.recover()
    store.create(RECORD, snapshot_at(0))


def take_step(store: Store, version: int) -> int | None:
    """Take the step to a version as a session does, and return the durable version."""
    ref = store.append(NAME, [memoryview(batch(version))])
    return store.commit(NAME, change_at(version, ref))


def train(store: Store, first: int, last: int) -> None:
    """Take the steps to the versions first .. last."""
    for version in range(first, last + 1):
        take_step(store, version)


def open_folder(folder: Path, level: Level = Level.PROCESS) -> FolderStore:
    return FolderStore(folder, level, {"torch": torch.__version__})


def check(store: Store, stored: Stored) -> int:
    """Hold a session against the training, replaying its steps; return the version reached."""
    assert stored.record == RECORD
    state = stored.snapshot.tensors["parameters"]["w"]
    assert torch.equal(state, state_at(stored.snapshot.version))
    assert stored.snapshot.scalars == snapshot_at(0).scalars
    for version, change in enumerate(stored.changes, stored.snapshot.version + 1):
        for ref in change.batches:
            state = step(state, store.read(NAME, ref))
        right, replayed = change_at(version, *change.batches), snapshot_of(state, version)
        assert change.digest == digest(replayed.tensors, replayed.scalars)
        assert (change.version, change.key, change.answer) == (version, right.key, right.answer)
        assert (change.fingerprint, change.options) == (right.fingerprint, right.options)
    for answered in stored.answered:
        right = change_at(answered.version)
        assert answered.version <= stored.version
        assert (answered.key, answered.answer) == (right.key, right.answer)
        assert answered.fingerprint == right.fingerprint
    return stored.version


def knows_every_key(stored: Stored) -> bool:
    """Tell whether a retry of each of the newest changes would be answered."""
    known = [answered.version for answered in stored.answered]
    return known == list(range(max(0, stored.version - REMEMBERED) + 1, stored.version + 1))


def found_again(folder: Path, level: Level = Level.PROCESS) -> Stored:
    """Open a folder, hold its one session against the training, and close it."""
    store = open_folder(folder, level)
    try:
        recovered = store.recover()
        assert recovered.problems == ()
        (stored,) = recovered.sessions
        check(store, stored)
        return stored
    finally:
        store.close()
