"""The data folder as one archive, while it goes on being used."""

import asyncio
import os
import tarfile
import time
from collections.abc import AsyncIterator
from typing import Any

from fastapi import APIRouter
from starlette.responses import Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from ...sessions.storage import Backup, BackupFile
from ..answers import CHUNK
from ..context import InContext
from ..openapi import Responses, problems

router = APIRouter(tags=["backup"])

MEDIA_TYPE = "application/x-tar"
_TAR: dict[str, Any] = {MEDIA_TYPE: {"schema": {"type": "string", "format": "binary"}}}
_ARCHIVE: Responses = {200: {"content": _TAR}}
_END = bytes(2 * tarfile.BLOCKSIZE)


@router.get(
    "/v1/backup",
    summary="Everything that is kept, at one moment",
    response_class=Response,
    responses=_ARCHIVE | problems("not_found", "storage_failed"),
)
async def backup(context: InContext) -> Response:
    """Return a tar archive that is a data folder: what a crash at this moment would leave.

    Changes wait only while the journal is copied. A server started on the unpacked folder has every
    session at the version that it had here. `not_found` where this server has no data folder.
    """
    return Archive(await context.durability.backup())


class Archive(StreamingResponse):
    """A backup as a tar archive, read from the disk as it is sent."""

    def __init__(self, backup: Backup) -> None:
        """Prepare the answer; the backup is closed when it has been sent, or its caller has left.

        Args:
            backup: what is sent.
        """
        self._backup = backup
        now = time.time()
        self._heads = [_head(file, now) for file in backup.files]
        sizes = (len(head) + _padded(file.size) for head, file in self._pairs())
        headers = {
            "content-length": str(sum(sizes) + len(_END)),
            "content-disposition": 'attachment; filename="curvserve.tar"',
        }
        super().__init__(self._chunks(), headers=headers, media_type=MEDIA_TYPE)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the answer."""
        with self._backup:
            await super().__call__(scope, receive, send)

    async def _chunks(self) -> AsyncIterator[bytes]:
        for head, file in self._pairs():
            yield head
            descriptor = file.file.fileno()
            for start in range(0, file.size, CHUNK):
                size = min(CHUNK, file.size - start)
                yield await asyncio.to_thread(_read, descriptor, size, start)
            yield bytes(_padded(file.size) - file.size)
        yield _END

    def _pairs(self) -> list[tuple[bytes, BackupFile]]:
        return list(zip(self._heads, self._backup.files, strict=True))


def _head(file: BackupFile, now: float) -> bytes:
    entry = tarfile.TarInfo(file.name)
    entry.size, entry.mode, entry.mtime = file.size, 0o600, now
    return entry.tobuf()


def _padded(size: int) -> int:
    return -(-size // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE


def _read(descriptor: int, size: int, start: int) -> bytes:
    """Return a part of a file, all of it.

    Raises:
        OSError: the file is shorter than it was, or the disk fails: the answer breaks off.
    """
    found = os.pread(descriptor, size, start)
    if len(found) != size:
        raise OSError(f"{size} bytes at {start} of a backup could not be read")
    return found
