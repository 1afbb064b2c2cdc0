"""The archive that a backup is answered with: what becomes of it when its caller leaves."""

import asyncio
from pathlib import Path

import httpx
import pytest
from starlette.types import Message

from curvserve.server.answers import CHUNK
from curvserve.server.routes.backup import Archive
from curvserve.sessions.storage import Backup
from tests.server.api import code

CHUNKS = 100


def test_a_caller_that_leaves_takes_the_backup_with_it(tmp_path: Path) -> None:
    file = tmp_path / "large"
    with file.open("wb") as opened:
        opened.truncate(CHUNKS * CHUNK)  # takes no room
    backup = Backup()
    backup.add("large", file)
    sent = 0

    async def answer() -> None:
        begun = asyncio.Event()

        async def receive() -> Message:
            await begun.wait()
            return {"type": "http.disconnect"}

        async def send(message: Message) -> None:
            nonlocal sent
            sent += len(message.get("body", b""))
            if sent > CHUNK:
                begun.set()

        await Archive(backup)({"type": "http"}, receive, send)

    asyncio.run(answer())
    assert 0 < sent < CHUNKS * CHUNK
    assert backup.files[0].file.closed


def test_a_file_that_became_shorter_breaks_the_answer_off(tmp_path: Path) -> None:
    file = tmp_path / "short"
    file.write_bytes(bytes(1000))
    backup = Backup()
    backup.add("short", file)
    file.write_bytes(bytes(10))

    async def receive() -> Message:
        await asyncio.Event().wait()
        raise AssertionError

    async def send(message: Message) -> None:
        assert message["type"] == "http.response.start" or message["body"]

    with pytest.raises(OSError, match="1000 bytes at 0 of a backup could not be read"):
        asyncio.run(Archive(backup)({"type": "http"}, receive, send))
    assert backup.files[0].file.closed


def test_a_server_that_keeps_nothing_has_no_backup(http: httpx.Client) -> None:
    answer = http.get("/v1/backup")
    assert (answer.status_code, code(answer)) == (404, "not_found")
    assert "no data folder" in answer.json()["detail"]
