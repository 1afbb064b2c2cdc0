"""The application: routes over sessions over an executor."""

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager

import torch
from curvserve_client.rules import DiagGGN
from curvserve_client.types import ModelSpec, ParameterSpec
from fastapi import FastAPI
from fastapi.telemetry import TelemetryConfig

from .. import __version__
from ..api_keys import KeyRing
from ..engine.quantities import QUANTITIES
from ..models import Model
from ..sessions import InlineExecutor, Session, Sessions
from .access import Access
from .context import Context
from .limits import Limits
from .metrics import Metrics
from .observation import Observation
from .openapi import document
from .problems import handle_problems
from .request_id import RequestId
from .route_table import RouteTable
from .routes import ROUTERS


def create_app(
    models: Sequence[Model],
    device: torch.device | str = "cpu",
    limits: Limits | None = None,
    keys: KeyRing | None = None,
    telemetry: TelemetryConfig | None = None,
) -> FastAPI:
    """Return the application; at start it begins one session named after each model.

    Args:
        models: what to serve.
        device: where to compute.
        limits: caps and deadlines; the defaults of `Limits` where None.
        keys: who may call; anyone where None.
        telemetry: FastAPI's OpenTelemetry; where None, what the variables OTEL_* say.
    """
    recipes = {model.name: model for model in models}
    executor = InlineExecutor(recipes, torch.device(device))
    sessions = Sessions(recipes, executor)
    metrics = Metrics(sessions.list)
    context = Context(sessions, executor, limits or Limits(), {}, metrics, keys)
    app = FastAPI(
        title="curvserve",
        version=__version__,
        docs_url=None,  # its pages load their parts from another host
        redoc_url=None,
        lifespan=_lifespan(context),
        telemetry={"auto_configure": True} if telemetry is None else telemetry,
    )
    app.state.context = context
    handle_problems(app)
    for router in ROUTERS:
        app.include_router(router)
    document(app)
    if keys is not None:
        app.add_middleware(Access, keys=keys)
    app.add_middleware(Observation, routes=RouteTable(app), metrics=metrics)
    app.add_middleware(RequestId)  # the last one added is the first to see a request
    return app


def _lifespan(context: Context) -> Callable[[FastAPI], AbstractAsyncContextManager[None]]:
    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        try:
            for model in context.sessions.models:
                session = await context.sessions.create(model, DiagGGN(), name=model)
                context.specifications[model] = specification(session)
            context.ready = True
            yield
        finally:
            context.ready = False
            context.executor.close()

    return lifespan


def specification(session: Session) -> ModelSpec:
    """Return what clients are told of a session's model."""
    model = session.model
    return ModelSpec(
        name=model.name,
        parameters={name: ParameterSpec.of(p) for name, p in session.state.parameters.items()},
        inputs=model.inputs.describe(),
        targets=model.targets.describe(),
        loss=type(model.loss()).__name__,
        metrics=tuple(model.metrics),
        quantities=("grad", *(name for name, kind in QUANTITIES.items() if kind.tensor)),
        max_batch=model.max_batch,
    )
