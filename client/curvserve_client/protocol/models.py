"""Calls about the models that a server has."""

from ..messages import JSON, Answer, Request
from ..types import ModelSpec
from ..types.fields import records
from .common import accept, escape


def list_models() -> Request[list[ModelSpec]]:
    """Ask for every model that is served."""

    def parse(answer: Answer) -> list[ModelSpec]:
        return [ModelSpec.from_dict(model) for model in records(answer.json(), "models")]

    return Request("GET", "/v1/models", "the list of models", parse, headers=accept(JSON))


def get_model(name: str) -> Request[ModelSpec]:
    """Ask for one model's specification."""
    return Request(
        "GET",
        f"/v1/models/{escape(name)}",
        f"the model {name!r}",
        lambda answer: ModelSpec.from_dict(answer.json()),
        headers=accept(JSON),
    )
