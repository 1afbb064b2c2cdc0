"""A request that carries a batch: received within its limits, read when its turn has come."""

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from curvserve_client.wire import MEDIA_TYPE
from fastapi import Request

from ..models.batch import check_layout
from ..sessions import Session, Tensors
from . import tensors
from .body import JSON, Body, receive
from .caller import Caller
from .context import Context
from .quotas import check_quota

BATCH: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "description": "The tensors `inputs` and `targets`, samples first.",
        "content": {
            MEDIA_TYPE: {"schema": {"type": "string", "format": "binary"}},
            JSON: {
                "schema": {
                    "type": "object",
                    "required": ["inputs", "targets"],
                    "properties": {"inputs": {"type": "array"}, "targets": {"type": "array"}},
                }
            },
        },
    }
}
"""What OpenAPI says of a route that takes a batch."""


@dataclass(frozen=True)
class Arrived:
    """A body that is here, and the one who waits for what comes of it.

    Attributes:
        body: the body.
        read: gives its tensors, checked.
        caller: the one who waits.
    """

    body: Body
    read: Callable[[], Awaitable[Tensors]]
    caller: Caller


def receive_batch(
    request: Request, session: Session, context: Context
) -> AbstractAsyncContextManager[Arrived]:
    """Receive a batch for a session, and count its memory as taken until the block ends.

    Raises:
        ProblemError: what `Session.check_capacity`, `check_quota` and `receive` refuse.
    """
    model = session.model
    check = partial(check_layout, model)
    dtypes = {"inputs": model.inputs.dtype, "targets": model.targets.dtype}
    size = tensors.batch_bytes(model)
    return receive_tensors(request, session, context, size, check, dtypes)


@asynccontextmanager
async def receive_tensors(
    request: Request,
    session: Session,
    context: Context,
    size: int,
    check: tensors.LayoutCheck,
    dtypes: Mapping[str, torch.dtype],
) -> AsyncIterator[Arrived]:
    """Receive tensors for a session.

    Args:
        request: the request, its body not yet read.
        session: whose work they are for.
        context: the application's.
        size: bytes of the largest legal tensors.
        check: raises unless names, dtypes and shapes are right.
        dtypes: tensor name -> the dtype that JSON numbers become.
    """
    session.check_capacity()
    check_quota(request, session)
    async with receive(request, context.limits, context.bodies, size) as body:
        read = partial(tensors.read, body, check, dtypes)
        yield Arrived(body, read, Caller(request, context.limits))
