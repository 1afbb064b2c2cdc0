"""Reading and writing whole files so that a crash leaves either the old or the new."""

import os
from collections.abc import Sequence
from pathlib import Path

from ... import failpoints


def join(parts: Sequence[memoryview]) -> bytearray:
    """Return the concatenation of parts."""
    joined = bytearray()
    for part in parts:
        joined += part
    return joined


def write_all(descriptor: int, parts: Sequence[memoryview | bytes]) -> None:
    """Write parts one after another, however little the system takes at a time."""
    for part in parts:
        rest = memoryview(part).cast("B") if len(part) else memoryview(b"")
        while rest:
            rest = rest[os.write(descriptor, rest) :]


def sync_folder(folder: Path) -> None:
    """Have the names in a folder survive power loss."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_whole(file: Path, parts: Sequence[memoryview]) -> None:
    """Write a file that appears, whole and synced, or not at all.

    It is written under another name, synced, renamed, and the folder synced.

    Raises:
        OSError: the disk refused; after an error the file may be there or not.
    """
    temporary = file.with_name(f".{file.name}.new")
    try:
        _write_synced(temporary, parts)
        failpoints.reached("before_snapshot_rename")
        os.replace(temporary, file)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise
    failpoints.reached("after_snapshot_rename")
    sync_folder(file.parent)


def _write_synced(file: Path, parts: Sequence[memoryview]) -> None:
    descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    try:
        write_all(descriptor, parts[: len(parts) // 2])
        failpoints.reached("mid_snapshot")
        write_all(descriptor, parts[len(parts) // 2 :])
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def read_whole(file: Path) -> bytearray:
    """Return a file's bytes in memory that can be written to."""
    with open(file, "rb", buffering=0) as opened:
        body = bytearray(os.fstat(opened.fileno()).st_size)
        view = memoryview(body)
        while view and (taken := opened.readinto(view)):
            view = view[taken:]
    if view:
        raise OSError(f"{file} became shorter while it was read")
    return body
