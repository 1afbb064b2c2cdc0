"""Batches of a session, one after another in append-only files.

A record is 8 bytes `CURVSEG1`, the length of the batch and its XXH3-64 (8 bytes each, little
endian), and the batch. A process appends only to files that it began itself: what a crash leaves
half written at the end of a file is never written over, and no committed change refers to it.
"""

import os
import struct
from collections.abc import Sequence
from pathlib import Path

import xxhash

from ... import failpoints
from .errors import Damaged, refused
from .files import make_folder, open_to_write, sync_folder, write_all
from .records import BatchRef

LIMIT = 64 * 1024 * 1024
"""Bytes after which the next record begins a new file."""

_HEADER = struct.Struct("<8sQQ")
_MAGIC = b"CURVSEG1"


class Segments:
    """The segment files of one session."""

    def __init__(self, folder: Path, sync: bool) -> None:
        """Look at what is there; a file is made at the first append.

        Args:
            folder: where the files are.
            sync: whether a batch is on the disk before `append` returns.
        """
        make_folder(folder)
        self._folder = folder
        self._sync = sync
        self._number = max(self._numbers(), default=0) + 1
        self._size = 0

    def append(self, parts: Sequence[memoryview]) -> BatchRef:
        """Write a batch, given as the parts of its bytes.

        Raises:
            StorageFailed: `broken` where a sync failed; else what was written is written over.
        """
        header, ref = self._describe(parts)
        file = self._file(ref.segment)
        with refused(f"a batch could not be written to {file}", broken=False):
            descriptor = open_to_write(file)
            try:
                os.lseek(descriptor, ref.offset, os.SEEK_SET)
                write_all(descriptor, [header, *parts])
                failpoints.reached("before_segment_sync")
                self._synchronise(descriptor, file, is_new=ref.offset == 0)
                failpoints.reached("after_segment_sync")
            finally:
                os.close(descriptor)
        self._number, self._size = ref.segment, ref.offset + _HEADER.size + ref.length
        return ref

    def read(self, ref: BatchRef) -> bytearray:
        """Return a batch.

        Raises:
            Damaged: its record is not what was appended, or is gone.
        """
        file = self._file(ref.segment)
        if ref.segment == 0:
            raise Damaged(file, ref.offset, "the batch was not kept at the level of that time")
        try:
            with open(file, "rb", buffering=0) as opened:
                opened.seek(ref.offset)
                header = opened.read(_HEADER.size)
                body = bytearray(ref.length)
                taken = opened.readinto(body)
        except OSError as error:
            raise Damaged(file, ref.offset, str(error)) from error
        if header != _HEADER.pack(_MAGIC, ref.length, ref.checksum):
            raise Damaged(file, ref.offset, "there is no record of the batch")
        if taken != ref.length or xxhash.xxh3_64_intdigest(body) != ref.checksum:
            raise Damaged(file, ref.offset, "the batch does not match its checksum")
        return body

    def remove_before(self, number: int) -> None:
        """Remove the files with lower numbers; the highest stays, so that numbers never repeat."""
        for found in sorted(self._numbers())[:-1]:
            if found < number:
                self._file(found).unlink()

    def _describe(self, parts: Sequence[memoryview]) -> tuple[bytes, BatchRef]:
        hasher = xxhash.xxh3_64()
        for part in parts:
            hasher.update(part)
        length, checksum = sum(part.nbytes for part in parts), hasher.intdigest()
        number, offset = self._number, self._size
        if offset and offset + _HEADER.size + length > LIMIT:
            number, offset = number + 1, 0
        header = _HEADER.pack(_MAGIC, length, checksum)
        return header, BatchRef(number, offset, length, checksum)

    def _synchronise(self, descriptor: int, file: Path, is_new: bool) -> None:
        if not self._sync:
            return
        with refused(f"{file} could not be synced", broken=True):
            os.fdatasync(descriptor)
        if is_new:
            sync_folder(self._folder)

    def _numbers(self) -> list[int]:
        return [int(file.stem) for file in self._folder.glob("*.segment") if file.stem.isdigit()]

    def _file(self, number: int) -> Path:
        return self._folder / f"{number:08}.segment"
