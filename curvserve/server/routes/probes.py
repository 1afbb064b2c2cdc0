"""Is the process alive, and does it want work? Neither waits for a computation."""

from curvserve_client.errors import Draining
from fastapi import APIRouter
from starlette.responses import Response

from ..answers import json_answer
from ..context import InContext
from ..openapi import problems

router = APIRouter(tags=["probes"])


@router.get("/livez", summary="The process answers")
async def livez() -> Response:
    """Answer while the event loop runs."""
    return json_answer({"status": "alive"})


@router.get("/readyz", summary="The server takes work", responses=problems("draining"))
async def readyz(context: InContext) -> Response:
    """Answer 200 from the start of service until the server begins to stop, then 503."""
    if not context.ready:
        raise Draining("the server is stopping and takes no new work")
    return json_answer({"status": "ready"})
