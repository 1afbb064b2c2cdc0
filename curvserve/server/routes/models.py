"""Models: what is served here, and what each takes."""

from fastapi import APIRouter
from starlette.responses import Response

from ..answers import json_answer
from ..context import InContext
from ..openapi import problems

router = APIRouter(prefix="/v1/models", tags=["models"])


@router.get("", summary="All models that are served")
async def list_models(context: InContext) -> Response:
    """Return every model's specification."""
    models = await context.catalogue.describe_all()
    return json_answer({"models": [model.to_dict() for model in models]})


@router.get("/{model}", summary="One model's specification", responses=problems("unknown_model"))
async def get_model(model: str, context: InContext) -> Response:
    """Return parameters, inputs, targets, loss, metrics, quantities and device of a model."""
    context.sessions.find_model(model)
    return json_answer((await context.catalogue.describe(model)).to_dict())
