"""The command line. Nothing heavy is imported before a command runs: `--help` is instant."""

import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from . import __version__

app = typer.Typer(
    help="Serve loss, gradients and curvature of PyTorch models over HTTP.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


def main() -> None:
    """Run the command line."""
    app()


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"curvserve {__version__}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_print_version, is_eager=True, help="Print it."),
    ] = False,
) -> None:
    """Serve loss, gradients and curvature of PyTorch models over HTTP."""


@app.command()
def serve(
    model: Annotated[
        list[str] | None,
        typer.Option(help="A registered model, or package.module:attribute; may be repeated."),
    ] = None,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port; 0 for a free one.")] = 8000,
    device: Annotated[str, typer.Option(help="auto, cpu, or a GPU as cuda:0.")] = "auto",
    insecure: Annotated[
        bool, typer.Option("--insecure", help="Listen where other machines can call.")
    ] = False,
) -> None:
    """Serve models until interrupted."""
    # before torch is loaded: workers that wait must not take a core from a trainer beside them
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    _add_working_folder()
    from .models import ModelNotFound, resolve
    from .server import create_app
    from .server.device import DeviceNotFound, find_device
    from .server.run import CannotListen, address_of, listen
    from .server.run import serve as run

    try:
        recipes = [resolve(reference) for reference in model or ["mnist_cnn"]]
        application = create_app(recipes, find_device(device))
        listener = listen(host, port, insecure=insecure)
    except (ModelNotFound, DeviceNotFound, CannotListen) as error:
        raise _refusal(str(error)) from None
    names = ", ".join(recipe.name for recipe in recipes)
    run(application, listener, f"curvserve: serving {names} at {address_of(listener)}")


@app.command()
def demo(
    steps: Annotated[int, typer.Option(min=1, help="Training steps.")] = 100,
    data_dir: Annotated[
        Path | None,
        typer.Option(help="Folder with MNIST/raw/*-ubyte; the bundled digits without it."),
    ] = None,
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port; 0 for a free one.")] = 0,
    keep: Annotated[bool, typer.Option("--keep", help="Leave the server up until Ctrl-C.")] = False,
) -> None:
    """Serve mnist_cnn, train it over HTTP on handwritten digits, and say how it went."""
    from .demo import DemoFailed, run

    try:
        run(steps=steps, data_dir=data_dir, port=port, keep=keep)
    except DemoFailed as error:
        raise _refusal(str(error)) from None


@app.command()
def models() -> None:
    """List the registered models."""
    from .models import available, resolve

    for name in available():
        recipe = resolve(name)
        typer.echo(f"{name}: {recipe.inputs.meaning} -> {recipe.targets.meaning}")


def _add_working_folder() -> None:
    """Find package.module:attribute in the working folder too, as `python -m` does."""
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())


def _refusal(message: str) -> typer.Exit:
    typer.echo(f"curvserve: {message}", err=True)
    return typer.Exit(1)
