"""`curvserve demo`."""

from pathlib import Path
from typing import Annotated

import typer

from .endings import refusing
from .output import Json
from .root import app


@app.command()
def demo(
    steps: Annotated[int, typer.Option(min=1, help="Training steps.")] = 100,
    data_dir: Annotated[
        Path | None,
        typer.Option(help="Folder with MNIST/raw/*-ubyte; the bundled digits without it."),
    ] = None,
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port; 0 for a free one.")] = 0,
    keep: Annotated[bool, typer.Option("--keep", help="Leave the server up until Ctrl-C.")] = False,
    json: Json = False,
) -> None:
    """Serve mnist_cnn, train it over HTTP on handwritten digits, and say how it went."""
    from ..demo import DemoFailed, run

    with refusing(DemoFailed):
        run(steps=steps, data_dir=data_dir, port=port, keep=keep, as_json=json)
