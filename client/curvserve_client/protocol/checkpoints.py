"""Calls about checkpoints."""

import json

from torch import Tensor

from .. import wire
from ..messages import JSON, Answer, Request
from ..types import CheckpointSpec
from ..types.fields import records
from .common import DOCUMENT, accept, path


def create_checkpoint(session: str, name: str, rule_state: bool) -> Request[CheckpointSpec]:
    """Ask to keep the current version under a name; the same again is answered alike."""
    document = {"name": name, "rule_state": rule_state}
    return Request(
        "POST",
        path(session, "checkpoints"),
        f"the checkpoint {name!r} of session {session!r}",
        lambda answer: CheckpointSpec.from_dict(answer.json()),
        headers=accept(JSON) | DOCUMENT,
        parts=[memoryview(json.dumps(document).encode())],
    )


def list_checkpoints(session: str) -> Request[list[CheckpointSpec]]:
    """Ask for every checkpoint of a session."""

    def parse(answer: Answer) -> list[CheckpointSpec]:
        return [CheckpointSpec.from_dict(each) for each in records(answer.json(), "checkpoints")]

    purpose = f"the checkpoints of session {session!r}"
    return Request("GET", path(session, "checkpoints"), purpose, parse, headers=accept(JSON))


def get_checkpoint(session: str, name: str) -> Request[tuple[dict[str, Tensor], dict[str, str]]]:
    """Ask for a checkpoint's tensors and metadata."""
    return Request(
        "GET",
        path(session, "checkpoints", name),
        f"the checkpoint {name!r} of session {session!r}",
        Answer.tensors,
        headers=accept(wire.MEDIA_TYPE),
    )
