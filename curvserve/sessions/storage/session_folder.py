"""The files of one session.

A session's folder is called after its place: its name, `@`, and a token that is new each time, so
that nothing of a deleted session is taken for a part of a later one of the same name.
"""

import os
import secrets
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from mmap import ACCESS_READ, mmap
from pathlib import Path

import xxhash

from .errors import Damaged, refused
from .files import make_folder, open_to_write, read_whole, remove_unfinished, write_all, write_whole
from .records import CheckpointInfo
from .segments import Segments
from .states import State, decode_state, describe_checkpoint, encode_state

NEW, DELETED = ".new-", ".deleted-"
"""What a folder's name begins with before the session's creation, and from its deletion on."""

MARK = "newest"
"""The one file of a session that is written over."""

_SUFFIX = ".safetensors"
_MARK = struct.Struct("<QQ")


def new_place(name: str) -> str:
    """Return a place that no session had before."""
    return f"{name}@{secrets.token_hex(4)}"


class SessionFolder:
    """Reads and writes the files of one session.

    Attributes:
        path: the folder.
        segments: its batches.
    """

    def __init__(self, path: Path, sync: bool) -> None:
        """Make the folder if it is missing, and clear away what a crash left unfinished.

        Args:
            path: the folder.
            sync: whether batches are synced.
        """
        self.path = path
        self._snapshots, self._checkpoints = path / "snapshots", path / "checkpoints"
        for folder in (self._snapshots, self._checkpoints):
            make_folder(folder)
            remove_unfinished(folder)
        self.segments = Segments(path / "segments", sync)

    def snapshot_versions(self) -> list[int]:
        """Return the versions that there are snapshots of, the newest first."""
        files = self._snapshots.glob(f"*{_SUFFIX}")
        return sorted((int(file.stem) for file in files if file.stem.isdigit()), reverse=True)

    def write_snapshot(self, state: State) -> None:
        """Write a snapshot; it is there, whole and synced, on return.

        Raises:
            StorageFailed: see `write_whole`.
        """
        write_whole(self._snapshot(state.snapshot.version), encode_state(state))

    def read_snapshot(self, version: int) -> State:
        """Return a snapshot.

        Raises:
            Damaged: it is not what was written.
        """
        file = self._snapshot(version)
        state = decode_state(_read(file), file)
        if (state.snapshot.version, state.record.name) != (version, self.path.name.split("@")[0]):
            raise Damaged(file, 8, "it is the snapshot of another session or version")
        return state

    def put_aside(self, version: int) -> str:
        """Rename a damaged snapshot, so that it is not counted, and return its new name."""
        file = self._snapshot(version)
        aside = file.with_name(f"{file.name}.damaged")
        os.replace(file, aside)
        return aside.name

    def keep_snapshots(self, count: int) -> int:
        """Remove all but the newest snapshots, and return the version of the oldest that stays."""
        versions = self.snapshot_versions()
        for version in versions[count:]:
            self._snapshot(version).unlink()
        return versions[:count][-1]

    def has_checkpoint(self, name: str) -> bool:
        """Tell whether there is a checkpoint of a name."""
        return self._checkpoint(name).exists()

    def write_checkpoint(self, name: str, state: State) -> CheckpointInfo:
        """Write a checkpoint.

        Raises:
            StorageFailed: see `write_whole`.
        """
        file = self._checkpoint(name)
        write_whole(file, encode_state(state))
        return self.describe_checkpoint(name)

    def checkpoint_names(self) -> list[str]:
        """Return the names of the checkpoints."""
        files = self._checkpoints.glob(f"*{_SUFFIX}")
        return sorted(file.name.removesuffix(_SUFFIX) for file in files)

    def describe_checkpoint(self, name: str) -> CheckpointInfo:
        """Return what a checkpoint's header says.

        Raises:
            Damaged: the header is not what was written.
        """
        file = self._checkpoint(name)
        with _reading(file), open(file, "rb") as opened:
            if not os.fstat(opened.fileno()).st_size:
                raise Damaged(file, 0, "it is empty")
            return describe_checkpoint(
                memoryview(mmap(opened.fileno(), 0, access=ACCESS_READ)), file
            )

    def read_checkpoint(self, name: str) -> bytearray:
        """Return a checkpoint's file, checked.

        Raises:
            Damaged: it is not what was written.
        """
        file = self._checkpoint(name)
        body = _read(file)
        decode_state(body, file)
        return body

    def mark(self, version: int) -> None:
        """Write down, outside the journal, the newest version that was committed.

        Not synced: where it is newer than the journal, the journal has lost changes.

        Raises:
            StorageFailed: `broken`, the change is committed and cannot be acknowledged.
        """
        text = version.to_bytes(8, "little")
        with refused(f"version {version} could not be marked as committed", broken=True):
            descriptor = open_to_write(self._mark)
            try:
                write_all(descriptor, [text + xxhash.xxh3_64_digest(text)])
            finally:
                os.close(descriptor)

    def marked(self) -> int:
        """Return the version that was marked last; 0 where there is no sound mark."""
        if not self._mark.exists():
            return 0
        text = self._mark.read_bytes()
        sound = text[8:] == xxhash.xxh3_64_digest(text[:8])
        return int.from_bytes(text[:8], "little") if sound else 0

    @property
    def _mark(self) -> Path:
        return self.path / MARK

    def _snapshot(self, version: int) -> Path:
        return self._snapshots / f"{version:010}{_SUFFIX}"

    def _checkpoint(self, name: str) -> Path:
        return self._checkpoints / f"{name}{_SUFFIX}"


@contextmanager
def _reading(file: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise Damaged(file, 0, str(error)) from error


def _read(file: Path) -> bytearray:
    with _reading(file):
        return read_whole(file)
