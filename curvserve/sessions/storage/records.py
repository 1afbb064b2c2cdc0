"""What is stored: plain values."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from torch import Tensor

REMEMBERED = 1024
"""How many changes of a session keep their key and answer; the oldest are forgotten first."""

RULE = "rule"
"""The group of a snapshot that holds the tensors of the rule's state."""

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


def check_name(name: str) -> None:
    """Refuse a name that could not be a file's.

    Raises:
        ValueError: it is not 1 to 64 letters, digits, dots, dashes and underscores, with a letter
            or a digit first.
    """
    if not _NAME.fullmatch(name):
        raise ValueError(
            f"{name!r} is no name; expected 1 to 64 letters, digits, dots, dashes or underscores, "
            "a letter or digit first"
        )


class Level(StrEnum):
    """What an acknowledged change survives."""

    FULL = "full"
    """Power loss: everything is synced before it is acknowledged."""
    PROCESS = "process"
    """The end of the process, by SIGKILL too: everything is handed to the operating system."""
    SNAPSHOT = "snapshot"
    """Nothing until the next snapshot: what follows `durable_version` is lost with the process."""
    NONE = "none"
    """Nothing."""

    @property
    def journals(self) -> bool:
        """Whether each change is written down by itself."""
        return self in (Level.FULL, Level.PROCESS)


@dataclass(frozen=True)
class BatchRef:
    """Where a batch lies in the session's segment files.

    Attributes:
        segment: number of the segment file; 0 where the level keeps no batches.
        offset: the first byte of the batch's record.
        length: the number of bytes in the batch.
        checksum: XXH3-64 of these bytes.
    """

    segment: int
    offset: int
    length: int
    checksum: int


@dataclass(frozen=True)
class SessionRecord:
    """What a session is from its beginning to its end.

    Attributes:
        name: what clients call it; unique among the sessions that live.
        model: name of its model.
        seed: what its initial parameters and draws come from.
        rule: name of its update rule.
        options: the rule's options.
        created: when it began, as ISO 8601.
        owner: the name of the API key that began it; empty where there was none.
    """

    name: str
    model: str
    seed: int
    rule: str
    options: Mapping[str, float]
    created: str
    owner: str = ""


@dataclass(frozen=True)
class Change:
    """One committed change of a session's parameters.

    Attributes:
        version: the session's version after it.
        key: the idempotency key, unique within the session.
        fingerprint: a digest of the whole request.
        kind: what was done: `step`, `optim_step`, `load`.
        options: all that a replay needs beside the batches.
        batches: what was computed on, in order.
        answer: the JSON members that the caller was told.
        digest: `digest` of the state after it.
        epoch: in which opening of the folder it was computed; set by the store.
        time: when it was committed, as ISO 8601; set by the store.
    """

    version: int
    key: str
    fingerprint: bytes
    kind: str
    options: Mapping[str, Any]
    batches: tuple[BatchRef, ...]
    answer: Mapping[str, Any]
    digest: str
    epoch: int = 0
    time: str = ""


@dataclass(frozen=True)
class FailedChange:
    """A request that was computed and refused, and changed nothing.

    Attributes:
        key: the idempotency key; may come again.
        fingerprint: a digest of the whole request.
        kind: as in `Change`.
        problem: the JSON members that the caller was told, for instance the code `non_finite`.
        time: when, as ISO 8601; set by the store.
    """

    key: str
    fingerprint: bytes
    kind: str
    problem: Mapping[str, Any]
    time: str = ""


@dataclass(frozen=True)
class Snapshot:
    """A session's whole state at one version.

    Attributes:
        version: the version.
        steps: how many of the changes up to it were steps.
        tensors: group (`parameters`, `buffers`, `rule`) -> name -> tensor; a checkpoint without
            rule state has no group `rule`.
        scalars: the rule's state beside tensors.
        digest: `digest` of tensors and scalars; computed by the store where it is empty.
        epoch: in which opening of the folder it was written; set by the store.
    """

    version: int
    steps: int
    tensors: Mapping[str, Mapping[str, Tensor]]
    scalars: Mapping[str, Any] = field(default_factory=dict)
    digest: str = ""
    epoch: int = 0


@dataclass(frozen=True)
class CheckpointInfo:
    """What a list of checkpoints says of one.

    Attributes:
        name: unique within the session.
        version: the session's version that it holds.
        size: bytes of its file.
        created: when it was written, as ISO 8601.
        with_rule_state: whether it holds the rule's state too.
    """

    name: str
    version: int
    size: int
    created: str
    with_rule_state: bool


@dataclass(frozen=True)
class Answered:
    """What is remembered of a change so that its retry can be answered.

    Attributes:
        key: the idempotency key.
        fingerprint: a digest of the whole request.
        version: the session's version after it.
        answer: the JSON members that the caller was told.
    """

    key: str
    fingerprint: bytes
    version: int
    answer: Mapping[str, Any]


@dataclass(frozen=True)
class Stored:
    """A session as it is found again: its state is the snapshot, then each change replayed.

    Attributes:
        record: what it is.
        snapshot: the newest sound snapshot.
        changes: the changes after it, in order, without a gap, their batches checked.
        answered: at most `REMEMBERED` changes up to the last of these, the oldest first.
        failed: the newest refused requests, the oldest first.
        problems: what was found damaged and what was done about it, in sentences.
    """

    record: SessionRecord
    snapshot: Snapshot
    changes: tuple[Change, ...] = ()
    answered: tuple[Answered, ...] = ()
    failed: tuple[FailedChange, ...] = ()
    problems: tuple[str, ...] = ()

    @property
    def version(self) -> int:
        """The version after the last change."""
        return self.changes[-1].version if self.changes else self.snapshot.version


@dataclass(frozen=True)
class Recovered:
    """Everything that a data folder gives back.

    Attributes:
        sessions: the sessions that live and can be served.
        problems: what concerns the folder, or sessions that cannot be served, in sentences.
        epochs: epoch -> what computed in it, as told when the folder was opened.
    """

    sessions: tuple[Stored, ...] = ()
    problems: tuple[str, ...] = ()
    epochs: Mapping[int, Mapping[str, str]] = field(default_factory=dict)
