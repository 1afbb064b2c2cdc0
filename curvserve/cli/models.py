"""`curvserve models`."""

from typing import TYPE_CHECKING, Any

from .output import Json, print_json, print_table
from .root import app

if TYPE_CHECKING:
    from curvserve_client.types import TensorSpec

    from ..models import Model


@app.command()
def models(json: Json = False) -> None:
    """List the registered models."""
    from ..models import available, resolve

    recipes = [resolve(name) for name in available()]
    if json:
        print_json([_document(recipe) for recipe in recipes])
        return
    rows = [
        (
            recipe.name,
            _sample(recipe.inputs.describe()),
            _sample(recipe.targets.describe()),
            type(recipe.loss()).__name__,
            f"{_parameters(recipe):,}",
        )
        for recipe in recipes
    ]
    print_table(("name", "inputs", "targets", "loss", "parameters"), rows)


def _document(recipe: "Model") -> dict[str, Any]:
    return {
        "name": recipe.name,
        "inputs": recipe.inputs.describe().to_dict(),
        "targets": recipe.targets.describe().to_dict(),
        "loss": type(recipe.loss()).__name__,
        "metrics": list(recipe.metrics),
        "max_batch": recipe.max_batch,
        "parameters": _parameters(recipe),
    }


def _sample(spec: "TensorSpec") -> str:
    return f"{' or '.join(spec.dtype)} {list(spec.shape)}"


def _parameters(recipe: "Model") -> int:
    import torch

    with torch.device("meta"):  # shapes alone: nothing is allocated or drawn
        return sum(p.numel() for p in recipe.build().parameters())
