"""Where sessions would be kept."""

import os
import shutil
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from .check import Check, gibibytes

_SYNCS = 21
_SLOW = 0.05
_ROOM = 5 * 2**30
_MOUNTS = Path("/proc/self/mountinfo")

_NETWORK = ("nfs", "cifs", "smb", "9p", "ceph", "glusterfs", "lustre", "beegfs", "gpfs", "afs")
_MEMORY = ("tmpfs", "ramfs")


def folder(path: Path) -> Iterator[Check]:
    """Yield what can be said of a data folder; nothing of it is changed."""
    where = path.absolute()
    while not where.exists():
        where = where.parent  # a server makes the rest
    if not (where.is_dir() and os.access(where, os.W_OK | os.X_OK)):
        advice = "give --data-dir a folder that this user can write to"
        yield Check("data folder", f"{where} cannot be written to", "error", advice)
        return
    yield Check("data folder", str(where) if where == path.absolute() else f"to be made in {where}")
    yield _file_system(where)
    yield _room(where)
    yield _sync(where)


def _file_system(where: Path) -> Check:
    kind = _kind(where)
    if kind.startswith(_NETWORK) or kind.startswith("fuse"):
        advice = "locks and syncs are then another machine's word: prefer a local disk"
        return Check("file system", kind, "warning", advice)
    if kind in _MEMORY:
        return Check("file system", kind, "warning", "it ends with the machine: take a disk")
    if kind == "overlay":
        return Check("file system", kind, "warning", "it ends with the container: mount a volume")
    return Check("file system", kind)


def _kind(where: Path) -> str:
    """Return the type of the file system that holds a folder."""
    found, depth = "unknown", -1
    if not _MOUNTS.exists():
        return found
    for line in _MOUNTS.read_text().splitlines():
        before, _, after = line.partition(" - ")
        mount = Path(before.split(" ")[4].replace("\\040", " "))
        if len(mount.parts) >= depth and where.resolve().is_relative_to(mount):
            found, depth = after.split(" ")[0], len(mount.parts)
    return found


def _room(where: Path) -> Check:
    usage = shutil.disk_usage(where)
    found = f"{gibibytes(usage.free)} of {gibibytes(usage.total)} free"
    if usage.free < _ROOM:
        return Check("disk", found, "warning", "steps are refused when it is full: make room")
    return Check("disk", found)


def _sync(where: Path) -> Check:
    """Time what an acknowledged step waits for: a small write that is synced."""
    times = []
    with tempfile.TemporaryFile(dir=where) as file:
        for _ in range(_SYNCS):
            began = time.perf_counter()
            file.write(bytes(4096))
            file.flush()
            os.fdatasync(file.fileno())
            times.append(time.perf_counter() - began)
    median = statistics.median(times)
    found = f"{1e3 * median:.2f} ms, median of {_SYNCS}; a step at level full waits for two"
    if median > _SLOW:
        return Check("sync", found, "warning", "take a faster disk, or --durability process")
    return Check("sync", found)
