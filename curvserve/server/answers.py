"""Answers: JSON, and tensors as scattered parts, each with the session's version as its ETag."""

import asyncio
import json
from collections.abc import Mapping
from typing import Any

from curvserve_client.wire import MEDIA_TYPE, encode, length
from fastapi import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send
from torch import Tensor

from .. import phases
from ..failpoints import reached
from .body import JSON

_ENCODER = json.JSONEncoder(separators=(",", ":"), allow_nan=False)

CHUNK = 1024 * 1024
"""Bytes handed to the socket at a time; more only piles up in its buffer."""


class Parts(Response):
    """An answer whose body is sent part by part, as it lies in memory."""

    def __init__(self, parts: list[memoryview], headers: Mapping[str, str]) -> None:
        """Prepare the answer.

        Args:
            parts: the body's parts, unchanging until they are sent.
            headers: further headers.
        """
        super().__init__(headers={**headers, "content-length": str(length(parts))})
        self.headers["content-type"] = MEDIA_TYPE
        self._parts = parts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the answer."""
        head = {"type": "http.response.start", "status": 200, "headers": self.raw_headers}
        await send(head)
        for part in self._parts:
            for start in range(0, len(part), CHUNK):
                body = part[start : start + CHUNK]
                await send({"type": "http.response.body", "body": body, "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})


class Receipt(Response):
    """The answer of a change."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the answer."""
        await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
        reached("mid_answer")
        await send({"type": "http.response.body", "body": self.body})


def etag(version: int) -> str:
    """Return a version as an entity tag."""
    return f'"{version}"'


def json_answer(
    document: Mapping[str, Any], version: int | None = None, kind: type[Response] = Response
) -> Response:
    """Return a JSON answer.

    Args:
        document: its members.
        version: the session's version, where it is about one.
        kind: how it is sent.
    """
    headers = {} if version is None else {"etag": etag(version)}
    with phases.measure("encode"):
        return kind(_dump(document), headers=headers, media_type=JSON)


async def tensor_answer(
    request: Request, tensors: Mapping[str, Tensor], metadata: Mapping[str, str], version: int
) -> Response:
    """Return tensors as safetensors, or as JSON where the caller speaks JSON.

    Args:
        request: its Accept header decides; without one its Content-Type does.
        tensors: name -> tensor in host memory.
        metadata: values in JSON's notation; members of the JSON answer, strings in the header.
        version: the session's version.
    """
    headers = {"etag": etag(version), "vary": "accept"}
    with phases.measure("encode"):
        if not _wants_json(request):
            return Parts(encode(tensors, metadata), headers)
        # number by number in Python: slow, so not on the event loop
        text = await asyncio.to_thread(_dump_tensors, tensors, metadata)
        return Response(text, headers=headers, media_type=JSON)


def _wants_json(request: Request) -> bool:
    accepted = request.headers.get("accept", "")
    if MEDIA_TYPE in accepted:
        return False
    return JSON in accepted or request.headers.get("content-type", "").startswith(JSON)


def _dump_tensors(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> bytes:
    members = {name: json.loads(value) for name, value in metadata.items()}
    nested = {name: tensor.tolist() for name, tensor in tensors.items()}
    return _dump(members | {"tensors": nested})


def _dump(document: Mapping[str, Any]) -> bytes:
    return _ENCODER.encode(document).encode()
