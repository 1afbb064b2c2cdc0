"""From files and rows to the newest sound state of a session."""

from collections.abc import Iterable
from dataclasses import dataclass

from .errors import Damaged
from .records import REMEMBERED, Answered, Change, Stored
from .rows import Journalled
from .session_folder import SessionFolder
from .states import State


@dataclass(frozen=True)
class Recovery:
    """What was found of one session.

    Attributes:
        stored: what is told to the sessions.
        first_version: the version that it began at.
        lost: the version from which on the journal may have changes that cannot be replayed.
    """

    stored: Stored
    first_version: int
    lost: int | None


def recover_session(folder: SessionFolder, rows: Journalled) -> Recovery:
    """Return the newest sound state of a session; damaged snapshots are put aside.

    Args:
        folder: its files.
        rows: what the journal holds of it.

    Raises:
        Damaged: it has no sound snapshot, so there is no state.
    """
    versions = folder.snapshot_versions()
    state, problems = _newest_sound(folder, versions)
    if rows.damaged:
        problems.append(f"{rows.damaged} rows of the journal do not match their checksum")
    changes, reason = _replayable(folder, rows, state.snapshot.version)
    reached = state.snapshot.version + len(changes)
    newest = max(folder.marked(), *versions, *_promised(rows))
    if newest > reached:
        problems.append(f"{_versions(reached + 1, newest)} lost: {reason}")
    problems += _forgotten(rows, state.first_version, reached)
    stored = Stored(
        record=state.record,
        snapshot=state.snapshot,
        changes=tuple(changes),
        answered=tuple(_answered(rows, reached)),
        failed=tuple(rows.failed[-REMEMBERED:]),
        problems=tuple(problems),
    )
    lost = bool(rows.damaged) or max(rows.changes, default=0) > reached
    return Recovery(stored, state.first_version, reached + 1 if lost else None)


def _newest_sound(folder: SessionFolder, versions: Iterable[int]) -> tuple[State, list[str]]:
    problems: list[str] = []
    for version in versions:
        try:
            return folder.read_snapshot(version), problems
        except Damaged as error:
            aside = folder.put_aside(version)
            problems.append(f"{error}; the snapshot was put aside as {aside}")
    raise Damaged(folder.path, 0, " ".join([*problems, "it has no sound snapshot"]))


def _replayable(folder: SessionFolder, rows: Journalled, version: int) -> tuple[list[Change], str]:
    """Return the changes after a version whose batches can be read, and why there are no more."""
    changes: list[Change] = []
    while change := rows.changes.get(version + len(changes) + 1):
        try:
            for ref in change.batches:
                folder.segments.read(ref)
        except Damaged as error:
            return changes, str(error)
        changes.append(change)
    return changes, f"the journal has no sound row of version {version + len(changes) + 1}"


def _promised(rows: Journalled) -> list[int]:
    # a row at level `snapshot` comes before its snapshot, and promises nothing without it
    return [
        version
        for version, change in rows.changes.items()
        if all(ref.segment for ref in change.batches)
    ]


def _answered(rows: Journalled, reached: int) -> list[Answered]:
    changes = [rows.changes[version] for version in sorted(rows.changes) if version <= reached]
    return [Answered(c.key, c.fingerprint, c.version, c.answer) for c in changes[-REMEMBERED:]]


def _forgotten(rows: Journalled, first: int, reached: int) -> list[str]:
    expected = range(max(first, reached - REMEMBERED) + 1, reached + 1)
    missing = [version for version in expected if version not in rows.changes]
    if not missing:
        return []
    which = _versions(missing[0], missing[-1], "no longer known by key")
    return [f"{len(missing)} of {which}: a retry of one is not recognised"]


def _versions(first: int, last: int, what: str = "") -> str:
    if first == last:
        return f"version {first} is {what}".rstrip()
    return f"versions {first} to {last} are {what}".rstrip()
