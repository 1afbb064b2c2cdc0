"""What has happened, and what happens: the steps of a session, and a live stream of events."""

import asyncio
import re
from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Annotated

from curvserve_client.errors import InvalidRequest
from fastapi import APIRouter, Depends, Header, Query
from fastapi.sse import EventSourceResponse, ServerSentEvent
from starlette.responses import Response

from ..answers import json_answer
from ..context import InContext, InSession
from ..openapi import problems

router = APIRouter(tags=["history"])


@router.get(
    "/v1/sessions/{name}/history",
    summary="The newest steps of a session",
    responses=problems("unknown_session", "invalid_request"),
)
async def history(session: InSession, after: Annotated[int, Query(ge=-1)] = -1) -> Response:
    """Return what is known of the steps behind a version.

    `steps` have loss, metrics and what the rule told; `failed` are the changes that were not
    applied since the server's start; `curvature` is what was seen while somebody watched.
    """
    document = {
        "steps": session.history(after),
        "failed": session.failures(),
        "curvature": session.seen_curvature(after),
    }
    # thousands of steps: not on the event loop
    return await asyncio.to_thread(json_answer, document, session.state.version)


async def _last_seen(last_event_id: Annotated[str | None, Header()] = None) -> int | None:
    """Return the number of the last event that the caller knows."""
    if last_event_id is None:
        return None
    if not re.fullmatch("[0-9]{1,19}", last_event_id):
        raise InvalidRequest(f"Last-Event-ID is {last_event_id!r}", expected="a whole number")
    return int(last_event_id)


@router.get(
    "/v1/events",
    summary="Everything that happens, live",
    response_class=EventSourceResponse,
    responses=problems("invalid_request"),
)
async def events(
    context: InContext,
    last_seen: Annotated[int | None, Depends(_last_seen)],
    session: Annotated[str | None, Query(max_length=64)] = None,
) -> AsyncIterator[ServerSentEvent]:
    """Stream server-sent events; with Last-Event-ID, those that were missed come first.

    The kinds are `step`, `failed`, `created`, `deleted`, `loaded` and `checkpoint`; each has the
    member `session`. `missed` says that some are forgotten: read the history. The newest `status`
    of the server and `curvature` of a session come without an id and are not replayed. With
    `session`, the steps, failures and curvature of others are left out.
    """
    async with aclosing(context.sessions.events.watch(last_seen, session)) as found:
        async for event in found:
            number = None if event.number is None else str(event.number)
            yield ServerSentEvent(raw_data=event.text, event=event.kind, id=number)
