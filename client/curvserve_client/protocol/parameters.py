"""Calls that read and replace a session's parameters."""

from collections.abc import Mapping

from torch import Tensor

from .. import wire
from ..messages import JSON, Answer, Request
from ..types.fields import parse_json, whole
from .common import SAFETENSORS, Version, accept, change, path


def get_parameters(session: str) -> Request[tuple[dict[str, Tensor], int]]:
    """Ask for a session's parameters and their version."""

    def parse(answer: Answer) -> tuple[dict[str, Tensor], int]:
        tensors, metadata = answer.tensors()
        return tensors, whole({"version": parse_json(metadata.get("version", ""))}, "version")

    return Request(
        "GET",
        path(session, "parameters"),
        f"the parameters of session {session!r}",
        parse,
        headers=accept(wire.MEDIA_TYPE),
    )


def put_parameters(
    session: str, tensors: Mapping[str, Tensor], version: Version, key: str
) -> Request[int]:
    """Send a session's parameters; the answer is their version.

    Args:
        session: the session's name.
        tensors: parameter name -> tensor.
        version: the version that is to be replaced; "*" for whatever is there.
        key: the idempotency key.
    """
    return Request(
        "PUT",
        path(session, "parameters"),
        f"new parameters in session {session!r}",
        lambda answer: whole(answer.json(), "version"),
        headers=accept(JSON) | change(version, key) | SAFETENSORS,
        parts=wire.encode(tensors),
    )
