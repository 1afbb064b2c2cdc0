"""The program that the commands belong to."""

import os
import sys
from typing import Annotated

import typer

from .. import __version__

app = typer.Typer(
    help="Serve loss, gradients and curvature of PyTorch models over HTTP.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)


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


def add_working_folder() -> None:
    """Find package.module:attribute in the working folder too, as `python -m` does."""
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
