"""Reading and writing whole files so that a crash leaves either the old or the new."""

import os
from collections.abc import Sequence
from pathlib import Path

from ... import failpoints
from .errors import refused


def join(parts: Sequence[memoryview]) -> bytearray:
    """Return the concatenation of parts."""
    joined = bytearray()
    for part in parts:
        joined += part
    return joined


def make_folder(folder: Path) -> None:
    """Make a folder that only its owner may look into, with those above it; one may exist."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)


def open_to_write(file: Path, flags: int = 0) -> int:
    """Return a descriptor of a file that only its owner may look into, made if missing."""
    return os.open(file, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC | flags, 0o600)


def write_all(descriptor: int, parts: Sequence[memoryview | bytes]) -> None:
    """Write parts one after another, however little the system takes at a time."""
    for part in parts:
        rest = memoryview(part).cast("B")
        while rest:
            rest = rest[os.write(descriptor, rest) :]


def sync_folder(folder: Path) -> None:
    """Have the names in a folder survive power loss.

    Raises:
        StorageFailed: `broken`, they may or may not.
    """
    with refused(f"{folder} could not be synced", broken=True):
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def write_whole(file: Path, parts: Sequence[memoryview]) -> None:
    """Write a file that appears, whole and synced, or not at all.

    It is written under another name, synced, renamed, and the folder synced.

    Raises:
        StorageFailed: `broken` where a sync failed; the file is as before where none did.
    """
    temporary = file.with_name(f".{file.name}.new")
    with refused(f"{file} could not be written", broken=False):
        try:
            _write_synced(temporary, parts)
            failpoints.reached("before_snapshot_rename")
            os.replace(temporary, file)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
    failpoints.reached("after_snapshot_rename")
    sync_folder(file.parent)


def remove_unfinished(folder: Path) -> None:
    """Remove what `write_whole` left in a folder when the process ended inside it."""
    for file in folder.glob(".*.new"):
        file.unlink()


def read_whole(file: Path) -> bytearray:
    """Return a file's bytes in memory that can be written to."""
    with open(file, "rb", buffering=0) as opened:
        body = bytearray(os.fstat(opened.fileno()).st_size)
        rest = memoryview(body)
        while rest and (taken := opened.readinto(rest)):
            rest = rest[taken:]
    if rest:
        raise OSError(f"{file} became shorter while it was read")
    return body


def _write_synced(file: Path, parts: Sequence[memoryview]) -> None:
    half = len(parts) // 2
    descriptor = open_to_write(file, os.O_TRUNC)
    try:
        write_all(descriptor, parts[:half])
        failpoints.reached("mid_snapshot")
        write_all(descriptor, parts[half:])
        with refused(f"{file} could not be synced", broken=True):
            os.fsync(descriptor)
    finally:
        os.close(descriptor)
