"""`curvserve models`."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .completion import complete_model
from .endings import refusing
from .output import Json, print_json, print_record, print_table
from .root import add_working_folder, app

if TYPE_CHECKING:
    from curvserve_client.types import TensorSpec

    from ..models import Model, SampleSpec


@app.command()
def models(
    references: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[MODEL]...",
            help="As `serve --model` takes them: checked, and told of in full.",
            autocompletion=complete_model,
        ),
    ] = None,
    json: Json = False,
) -> None:
    """List the registered models, or check some and tell which quantities they have.

    torchvision's classification models are served too, as torchvision:NAME.
    """
    add_working_folder()
    from ..models import ModelError

    with refusing(ModelError):
        if references:
            _describe(references, json)
        else:
            _list(json)


def _list(json: bool) -> None:
    from ..models import ModelError, available, resolve

    recipes: list[Model] = []
    broken: dict[str, str] = {}
    for name in available():
        try:
            recipes.append(resolve(name))
        except ModelError as error:  # another package's, which hides no other
            broken[name] = str(error)
    if json:
        told = [{"name": name, "error": reason} for name, reason in broken.items()]
        print_json([*map(_document, recipes), *told])
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
    for name, reason in broken.items():
        typer.echo(f"curvserve: {name}: {reason}", err=True)


def _describe(references: Sequence[str], json: bool) -> None:
    """Check models on the CPU, and tell what each takes and has."""
    import torch

    from ..models import check, find_support, resolve

    documents = []
    for reference in references:
        recipe = resolve(reference)
        with torch.random.fork_rng([]):
            support = find_support(recipe, *check(recipe), torch.device("cpu"))
        found = {"quantities": support.quantities, "refused": dict(support.refused)}
        documents.append({**_document(recipe), **found})
        if not json:
            print_record(
                {
                    "name": recipe.name,
                    "parameters": f"{_parameters(recipe):,}",
                    "loss": type(recipe.loss()).__name__,
                    "metrics": ", ".join(recipe.metrics) or "none",
                    "inputs": _told(recipe.inputs),
                    "targets": _told(recipe.targets),
                    "quantities": ", ".join(support.quantities),
                    "refused": str(support) or "none",
                }
            )
    if json:
        print_json(documents)


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


def _told(spec: "SampleSpec") -> str:
    return spec.expected() + (f": {spec.meaning}" if spec.meaning else "")


def _parameters(recipe: "Model") -> int:
    import torch

    with torch.device("meta"):  # shapes alone: nothing is allocated or drawn
        return sum(p.numel() for p in recipe.build().parameters())
