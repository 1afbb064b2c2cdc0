"""`curvserve bench`."""

from typing import Annotated

import typer

from .completion import complete_model
from .endings import refusing
from .output import Json
from .root import add_working_folder, app


@app.command()
def bench(
    model: Annotated[
        str,
        typer.Option(
            help="A registered model, or package.module:attribute.", autocompletion=complete_model
        ),
    ] = "mnist_cnn",
    batch: Annotated[int, typer.Option(min=1, help="Samples in a batch.")] = 64,
    quantity: Annotated[
        list[str] | None, typer.Option(help="DiagGGNMC, BatchGrad, ...; may be repeated.")
    ] = None,
    threads: Annotated[
        list[int] | None,
        typer.Option(min=1, help="CPU threads; may be repeated. 1, and 2 where there are two."),
    ] = None,
    rounds: Annotated[int, typer.Option(min=2, help="Passes of each contestant.")] = 20,
    device: Annotated[str, typer.Option(help="auto, cpu, or a GPU as cuda:0.")] = "cpu",
    json: Json = False,
) -> None:
    """Time the curvature of a model here, against BackPACK and others that are installed.

    Contestants take turns in one process, and each one's numbers are checked first.
    """
    add_working_folder()
    from ..bench import command
    from ..models import ModelError
    from ..server.device import DeviceNotFound, find_device

    with refusing(ModelError, DeviceNotFound, command.BenchFailed):
        where = find_device(device)
        command.bench(model, batch, quantity, threads, rounds, where, as_json=json)
