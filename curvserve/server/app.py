"""The application: routes over sessions over an executor."""

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager

import torch
from curvserve_client.rules import DiagGGN
from curvserve_client.types import ModelSpec, ParameterSpec
from fastapi import FastAPI

from .. import __version__
from ..engine.quantities import QUANTITIES
from ..models import Model
from ..sessions import InlineExecutor, Session, Sessions
from .context import Context
from .limits import Limits
from .problems import handle_problems
from .request_id import RequestId
from .routes import ROUTERS


def create_app(
    models: Sequence[Model], device: torch.device | str = "cpu", limits: Limits | None = None
) -> FastAPI:
    """Return the application; at start it begins one session named after each model.

    Args:
        models: what to serve.
        device: where to compute.
        limits: caps and deadlines; the defaults of `Limits` where None.
    """
    recipes = {model.name: model for model in models}
    executor = InlineExecutor(recipes, torch.device(device))
    context = Context(Sessions(recipes, executor), executor, limits or Limits(), {})
    app = FastAPI(
        title="curvserve",
        version=__version__,
        docs_url=None,  # its pages load their parts from another host
        redoc_url=None,
        lifespan=_lifespan(context),
    )
    app.state.context = context
    app.add_middleware(RequestId)
    handle_problems(app)
    for router in ROUTERS:
        app.include_router(router)
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
