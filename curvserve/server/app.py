"""The application: routes over sessions over an executor."""

import asyncio
import os
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from typing import Any

import torch
from fastapi import FastAPI
from fastapi.telemetry import TelemetryConfig

from .. import __version__
from ..api_keys import KeyRing
from ..models import Model
from ..sessions import Durability, Executor, InlineExecutor, Sessions
from ..sessions.durability import SNAPSHOT_EVERY
from ..sessions.storage import MemoryStore, Store
from .access import Access
from .bodies import Bodies
from .catalogue import Catalogue
from .context import Context
from .limits import Limits
from .metrics import Metrics
from .observation import Observation
from .openapi import document
from .problems import handle_problems
from .quotas import Quotas
from .request_id import RequestId
from .route_table import RouteTable
from .routes import ROUTERS
from .shortcut import Shortcut
from .status import Status


def create_app(
    models: Sequence[Model],
    devices: Mapping[str, torch.device] | None = None,
    limits: Limits | None = None,
    keys: KeyRing | None = None,
    telemetry: TelemetryConfig | None = None,
    open_store: Callable[[], Store] = MemoryStore,
    snapshot_every: int = SNAPSHOT_EVERY,
    executor: Executor | None = None,
) -> FastAPI:
    """Return the application.

    At start it brings back the sessions of its store, and begins one named after each model where
    there is none of that name.

    Args:
        models: what to serve, of different names.
        devices: model name -> where it is computed; the CPU where None.
        limits: caps and deadlines; the defaults of `Limits` where None.
        keys: who may call; anyone where None.
        telemetry: FastAPI's OpenTelemetry; where None, what the variables OTEL_* say.
        open_store: makes what keeps the sessions.
        snapshot_every: changes between two snapshots of a session.
        executor: who computes; threads of this process where None.

    Raises:
        ModelUnfit: a model does not work.
        NoKeys: there are quotas of keys, and no keys.
    """
    limits = limits or Limits()
    quotas = Quotas(keys, limits)
    recipes = {model.name: model for model in models}
    devices = devices or dict.fromkeys(recipes, torch.device("cpu"))
    executor = executor or InlineExecutor(recipes, devices)
    catalogue = Catalogue(recipes, devices, executor)
    durability = Durability(open_store, executor.to_host, snapshot_every)
    sessions = Sessions(recipes, executor, durability, limits.queue)
    metrics = Metrics(sessions.list, lambda: durability.folder, executor.demand, quotas.accounts)
    bodies = Bodies(limits.bodies_bytes)
    status = Status(sessions, keyed=keys is not None)
    context = Context(sessions, executor, durability, limits, catalogue, metrics, bodies, keys)
    app = FastAPI(
        title="curvserve",
        version=__version__,
        docs_url=None,  # its pages load their parts from another host
        redoc_url=None,
        lifespan=_lifespan(context, status),
        telemetry=_as_told_by_variables() if telemetry is None else telemetry,
    )
    app.state.context = context
    handle_problems(app)
    for router in ROUTERS:
        app.include_router(router)
    document(app)
    app.add_middleware(Shortcut)
    if keys is not None:
        app.add_middleware(Access, keys=keys, quotas=quotas)
    app.add_middleware(Observation, routes=RouteTable(app), metrics=metrics, status=status)
    app.add_middleware(RequestId)  # the last one added is the first to see a request
    return app


def _as_told_by_variables() -> TelemetryConfig:
    if any(name.startswith("OTEL_") for name in os.environ):
        return {"auto_configure": True}
    # or FastAPI would look at each request whether somebody has begun to
    return {"tracing": False, "metrics": False, "logs": False}


def _lifespan(
    context: Context, status: Status
) -> Callable[[FastAPI], AbstractAsyncContextManager[None]]:
    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        try:
            await context.sessions.recover()
            for name in context.sessions.models:
                if context.sessions.is_free(name):
                    await context.sessions.create(name, name=name)
            context.catalogue.begin()
            context.ready = True
            parking = context.sessions.park(context.limits.park_seconds)
            async with _beside(status.tell()), _beside(parking):
                yield
                await context.sessions.finish(context.limits.shutdown_seconds)
                await context.catalogue.finish(context.limits.shutdown_seconds)
                await context.sessions.close()
        finally:
            context.ready = False
            context.hung = not context.executor.close(0)  # `finish` gave it its time
            context.durability.close()

    return lifespan


@asynccontextmanager
async def _beside(work: Coroutine[Any, Any, None]) -> AsyncIterator[None]:
    """Run endless work beside a block; what it fails with is raised at the end of it."""
    task = asyncio.create_task(work)
    try:
        yield
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task
