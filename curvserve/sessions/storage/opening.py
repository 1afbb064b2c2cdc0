"""Finding the sessions of a data folder again."""

import shutil
from dataclasses import replace
from pathlib import Path

from .errors import Damaged
from .journal import Journal
from .live import LiveSession
from .records import CheckpointInfo, Stored
from .recovery import recover_session
from .session_folder import DELETED, NEW, SessionFolder


def tidy(folder: Path, journal: Journal) -> list[str]:
    """Finish the creations and deletions that a crash interrupted.

    Args:
        folder: where the sessions' folders are.
        journal: where their changes are.

    Returns:
        What is wrong beyond that, in sentences.
    """
    for path in folder.glob(f"{NEW}*"):
        shutil.rmtree(path)
    for path in folder.glob(f"{DELETED}*"):
        clear_away(path, journal)
    gone = sorted(journal.places() - {path.name for path in folder.glob("*@*")})
    for place in gone:
        journal.remove(place)
    return [f"the journal had changes of {place}, whose folder is gone" for place in gone]


def clear_away(path: Path, journal: Journal) -> None:
    """Remove what is left of a deleted session."""
    journal.remove(path.name.removeprefix(DELETED))
    shutil.rmtree(path)


def open_session(path: Path, journal: Journal, sync: bool) -> tuple[LiveSession, Stored]:
    """Return the session of a folder, and what is found of it.

    Args:
        path: its folder.
        journal: where its changes are.
        sync: whether its batches are synced.

    Raises:
        Damaged: there is no sound state of it.
    """
    folder = SessionFolder(path, sync)
    recovery = recover_session(folder, journal.read(path.name))
    stored = recovery.stored
    checkpoints, problems = _checkpoints(folder)
    live = LiveSession(
        folder=folder,
        record=stored.record,
        first_version=recovery.first_version,
        version=stored.version,
        durable=stored.version,
        lost=recovery.lost,
        checkpoints=checkpoints,
    )
    return live, replace(stored, problems=(*stored.problems, *problems))


def _checkpoints(folder: SessionFolder) -> tuple[list[CheckpointInfo], list[str]]:
    found, problems = [], []
    for name in folder.checkpoint_names():
        try:
            found.append(folder.describe_checkpoint(name))
        except Damaged as error:
            problems.append(f"a checkpoint cannot be read: {error}")
    return sorted(found, key=lambda described: described.created), problems
