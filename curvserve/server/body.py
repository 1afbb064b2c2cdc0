"""The bytes of a request, received once into one buffer.

`FastAPI(max_body_size=...)` is not used: it answers with plain text, where every error of this
service is a problem document, and it knows one cap, where ours follow from the model.
"""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass

import xxhash
from curvserve_client.errors import (
    BodyTooLarge,
    LengthRequired,
    MalformedBody,
    UnsupportedMediaType,
)
from curvserve_client.wire import MEDIA_TYPE
from fastapi import Request
from starlette.requests import ClientDisconnect

from .bodies import Bodies
from .limits import Limits

JSON = "application/json"


@dataclass(frozen=True)
class Body:
    """A body that arrived whole.

    Attributes:
        data: its bytes.
        media_type: `application/json` or that of safetensors.
        fingerprint: XXH3-128 of method, path, query and bytes: tells a retry from another request,
            and is no defence against a caller who deceives itself.
    """

    data: bytearray
    media_type: str
    fingerprint: bytes


def media_type(request: Request) -> str:
    """Return a body's media type without its parameters.

    Raises:
        UnsupportedMediaType: neither JSON nor safetensors, or compressed.
    """
    coding = request.headers.get("content-encoding", "identity")
    if coding.strip().lower() != "identity":
        raise UnsupportedMediaType(f"the Content-Encoding is {coding!r}", expected="none")
    given = request.headers.get("content-type", "")
    kind = given.partition(";")[0].strip().lower()
    if kind not in (JSON, MEDIA_TYPE):
        expected = f"{MEDIA_TYPE} or {JSON}"
        raise UnsupportedMediaType(f"the Content-Type is {given!r}", expected=expected)
    return kind


@asynccontextmanager
async def receive(
    request: Request, limits: Limits, bodies: Bodies, tensor_bytes: int
) -> AsyncIterator[Body]:
    """Receive a body, up to its cap; its memory counts as taken until the block ends.

    Args:
        request: the request, its body not yet read.
        limits: caps and deadlines.
        bodies: where the body's memory comes from.
        tensor_bytes: what the largest legal tensors take; 0 for a JSON document without tensors.

    Raises:
        UnsupportedMediaType: neither JSON nor safetensors, or compressed.
        LengthRequired: no Content-Length, and not chunked.
        BodyTooLarge: over the cap, declared or arrived; nothing more of it is kept.
        Overloaded: all bodies together take too much.
        MalformedBody: not as many bytes as declared.
        DeadlineExceeded: it did not arrive in time.
        Draining: the server stopped before it had arrived.
        ClientDisconnect: the caller left before it arrived.
    """
    kind = media_type(request)
    cap = _cap(kind, limits, tensor_bytes)
    declared = _declared_length(request, cap)
    bodies.check_room(declared or 0)
    target = f"{request['path']}?".encode() + request["query_string"]
    digest = xxhash.xxh3_128(request.method.encode() + b" " + target + b"\n")
    with bodies.share() as take:
        arriving = _collect(request, cap, take, digest)
        data = await bodies.arriving(arriving, limits.body_seconds)
        if declared is not None and len(data) != declared:
            raise MalformedBody(f"{declared} bytes were declared, {len(data)} arrived")
        yield Body(data, kind, digest.digest())


async def _collect(
    request: Request, cap: int, take: Callable[[int], None], digest: xxhash.xxh3_128
) -> bytearray:
    data = bytearray()
    more = True
    while more:
        message = await request.receive()
        if message["type"] == "http.disconnect":
            raise ClientDisconnect
        chunk, more = message.get("body", b""), message.get("more_body", False)
        if len(data) + len(chunk) > cap:
            raise _too_large(f"more than {cap} bytes arrived", cap)
        take(len(chunk))
        digest.update(chunk)
        data += chunk  # as fast as into a buffer of the declared length, which is zeroed first
    return data


def _cap(kind: str, limits: Limits, tensor_bytes: int) -> int:
    if not tensor_bytes:
        return limits.control_bytes
    return limits.json_bytes if kind == JSON else limits.header_bytes + tensor_bytes


def _declared_length(request: Request, cap: int) -> int | None:
    headers = request.headers
    if "content-length" not in headers:
        if "transfer-encoding" in headers:
            return None
        raise LengthRequired("the request has no Content-Length and is not chunked")
    length = int(headers["content-length"])  # the HTTP parser let only digits through
    if length > cap:
        raise _too_large(f"the body has {length} bytes", cap)
    return length


def _too_large(detail: str, cap: int) -> BodyTooLarge:
    return BodyTooLarge(detail, expected=f"at most {cap} bytes")
