"""What the application holds, and how a route comes by it."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

from fastapi import Depends, Request

from ..api_keys import KeyRing
from ..sessions import Durability, Executor, Session, Sessions
from .bodies import Bodies
from .catalogue import Catalogue
from .limits import Limits

if TYPE_CHECKING:
    from .metrics import Metrics  # which counts by routes, and these need a context


@dataclass
class Context:
    """Everything that outlives a request.

    Attributes:
        sessions: the sessions, and the models that they may be of.
        executor: who computes.
        durability: who keeps the sessions.
        limits: caps and deadlines.
        catalogue: what is told of the models.
        metrics: what is counted.
        bodies: what is being received.
        keys: who may call; anyone where None.
        ready: whether new work is welcome.
        hung: whether a computation was still under way when the server had stopped.
    """

    sessions: Sessions
    executor: Executor
    durability: Durability
    limits: Limits
    catalogue: Catalogue
    metrics: "Metrics"
    bodies: Bodies
    keys: KeyRing | None = None
    ready: bool = False
    hung: bool = False


# FastAPI would run a plain function in a thread of its own pool, for every request
async def current_context(request: Request) -> Context:
    """Return the application's context."""
    context = request.app.state.context
    assert isinstance(context, Context)
    return context


async def current_session(name: str, request: Request) -> Session:
    """Return the session that the path names, and note it for the answer's ETag.

    Raises:
        UnknownSession: there is none of this name.
    """
    context = await current_context(request)
    session = context.sessions.find(name)
    request.state.session = session
    return session


InContext = Annotated[Context, Depends(current_context)]
InSession = Annotated[Session, Depends(current_session)]
