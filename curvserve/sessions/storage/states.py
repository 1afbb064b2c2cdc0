"""States as files: a safetensors layout whose metadata say whose state it is, and check it."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import xxhash
from curvserve_client import wire
from curvserve_client.errors import MalformedBody
from torch import Tensor

from .digest import digest, flatten
from .errors import Damaged
from .records import RULE, CheckpointInfo, SessionRecord, Snapshot

_FORMAT = "curvserve state 1"
_Metadata = dict[str, str]


@dataclass(frozen=True)
class State:
    """What a snapshot's or a checkpoint's file holds.

    Attributes:
        record: whose state it is.
        snapshot: the state.
        first_version: the version that the session began at.
        written: when the file was written, as ISO 8601.
    """

    record: SessionRecord
    snapshot: Snapshot
    first_version: int
    written: str


def now() -> str:
    """Return the time in UTC, as ISO 8601 to the millisecond."""
    return datetime.now(UTC).isoformat(timespec="milliseconds")


def encode_state(state: State) -> list[memoryview]:
    """Return a state as the parts of a file."""
    record, snapshot = state.record, state.snapshot
    found = snapshot.digest or digest(snapshot.tensors, snapshot.scalars)
    metadata = {
        "format": _FORMAT,
        "session": record.name,
        "model": record.model,
        "seed": str(record.seed),
        "rule": record.rule,
        "options": json.dumps(dict(record.options)),
        "created": record.created,
        "owner": record.owner,
        "first_version": str(state.first_version),
        "version": str(snapshot.version),
        "steps": str(snapshot.steps),
        "groups": json.dumps(sorted(snapshot.tensors)),
        "scalars": json.dumps(dict(snapshot.scalars)),
        "digest": found,
        "epoch": str(snapshot.epoch),
        "written": state.written,
    }
    metadata["checksum"] = _checksum(metadata)
    return wire.encode(flatten(snapshot.tensors), metadata)


def decode_state(body: wire.Buffer, file: Path = Path("state")) -> State:
    """Return the state that a file holds; its tensors are views of the body.

    Args:
        body: the whole file.
        file: what an error calls it.

    Raises:
        Damaged: it is not what `encode_state` wrote.
    """
    try:
        tensors, metadata = wire.decode(body)
    except MalformedBody as error:
        raise Damaged(file, 0, str(error)) from error
    _check(metadata, file)
    snapshot = _snapshot(metadata, _grouped(tensors, json.loads(metadata["groups"])))
    found = digest(snapshot.tensors, snapshot.scalars)
    if found != snapshot.digest:
        start = 8 + int.from_bytes(body[:8], "little")
        raise Damaged(
            file, start, f"its tensors have the digest {found}, not {snapshot.digest} as written"
        )
    return State(_record(metadata), snapshot, int(metadata["first_version"]), metadata["written"])


def describe_checkpoint(body: wire.Buffer, file: Path) -> CheckpointInfo:
    """Return what a checkpoint's header says; its tensors are not looked at.

    Args:
        body: the whole file.
        file: the file, called after the checkpoint.

    Raises:
        Damaged: the header is not what `encode_state` wrote.
    """
    try:
        _, metadata = wire.read_header(body)
    except MalformedBody as error:
        raise Damaged(file, 0, str(error)) from error
    _check(metadata, file)
    return CheckpointInfo(
        name=file.name.removesuffix(".safetensors"),
        version=int(metadata["version"]),
        size=len(body),
        created=metadata["written"],
        with_rule_state=RULE in json.loads(metadata["groups"]),
    )


def _checksum(metadata: Mapping[str, str]) -> str:
    covered = {name: text for name, text in metadata.items() if name != "checksum"}
    return xxhash.xxh3_128_hexdigest(json.dumps(covered, sort_keys=True).encode())


def _check(metadata: _Metadata, file: Path) -> None:
    # the digest is among the metadata: this and the digest together cover every byte that counts
    if metadata.get("checksum") != _checksum(metadata):
        raise Damaged(file, 8, "its metadata do not match their checksum")
    if metadata["format"] != _FORMAT:
        raise Damaged(file, 8, f"it is {metadata['format']!r}, expected {_FORMAT!r}")


def _record(metadata: _Metadata) -> SessionRecord:
    return SessionRecord(
        name=metadata["session"],
        model=metadata["model"],
        seed=int(metadata["seed"]),
        rule=metadata["rule"],
        options=json.loads(metadata["options"]),
        created=metadata["created"],
        owner=metadata.get("owner", ""),  # not in files from before there were quotas
    )


def _snapshot(metadata: _Metadata, tensors: Mapping[str, Mapping[str, Tensor]]) -> Snapshot:
    scalars: Mapping[str, Any] = json.loads(metadata["scalars"])
    return Snapshot(
        version=int(metadata["version"]),
        steps=int(metadata["steps"]),
        tensors=tensors,
        scalars=scalars,
        digest=metadata["digest"],
        epoch=int(metadata["epoch"]),
    )


def _grouped(tensors: Mapping[str, Tensor], groups: Sequence[str]) -> dict[str, dict[str, Tensor]]:
    found: dict[str, dict[str, Tensor]] = {group: {} for group in groups}
    for flat, tensor in tensors.items():
        group, _, name = flat.partition(".")
        found.setdefault(group, {})[name] = tensor
    return found
