"""`curvserve keys`."""

from typing import Annotated, Literal

import typer

from .endings import refusing
from .output import Json, print_json
from .root import app

keys = typer.Typer(help="API keys.", no_args_is_help=True)
app.add_typer(keys, name="keys")


@keys.command()
def new(
    name: Annotated[str, typer.Option(help="Whom the key is for.")],
    scope: Annotated[
        Literal["read", "train", "admin"],
        typer.Option(help="What it allows; each includes those before it."),
    ] = "train",
    sessions: Annotated[
        int | None,
        typer.Option(
            min=0,
            help="Live sessions that it may have begun; 0 for no limit. Else the server's "
            "--sessions-per-key.",
        ),
    ] = None,
    requests: Annotated[
        int | None,
        typer.Option(
            min=0,
            help="Requests of it that may wait or be computed; 0 for no limit. Else the server's "
            "--requests-per-key.",
        ),
    ] = None,
    json: Json = False,
) -> None:
    """Make a key: its entry is printed, to be added to a key file, and the key itself shown once.

    The key goes to standard error, so that `curvserve keys new --name loop >> keys.toml` keeps the
    entry alone. With --json both go to standard output.
    """
    from ..api_keys import KeyFileError, new_key

    with refusing(KeyFileError):
        key, entry = new_key(name, [scope], sessions, requests)
    if json:
        print_json({"name": name, "scope": scope, "key": key, "entry": entry.to_toml()})
        return
    typer.echo(f"the key of {name}, shown this once: {key}", err=True)
    typer.echo(entry.to_toml())
