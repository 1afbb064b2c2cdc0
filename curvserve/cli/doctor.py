"""`curvserve doctor`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from .endings import Status, refusal
from .output import Json, print_json, print_table
from .probe import probe
from .reach import CannotAsk, KeyFile
from .root import app

if TYPE_CHECKING:
    from ..doctor.check import Check

_SECONDS = 5.0


@app.command()
def doctor(
    url: Annotated[
        str | None, typer.Option(help="Look at a running server instead; unix:/path of a socket.")
    ] = None,
    key_file: KeyFile = None,
    data_dir: Annotated[
        Path,
        typer.Option(envvar="CURVSERVE_DATA_DIR", help="Where sessions would be kept."),
    ] = Path(),
    host: Annotated[
        str, typer.Option(envvar="CURVSERVE_HOST", help="Where it would listen.")
    ] = "127.0.0.1",
    port: Annotated[
        int, typer.Option(min=0, max=65535, envvar="CURVSERVE_PORT", help="Its port.")
    ] = 8000,
    json: Json = False,
) -> None:
    """Check what a server needs: versions, devices, disk, network; exit status 1 on an error."""
    found = _machine(data_dir, host, port) if url is None else _server(url, key_file)
    if json:
        print_json([check.to_dict() for check in found])
    else:
        rows = [(c.status, c.name, c.found, c.advice) for c in found]
        print_table(("status", "what", "found", "what to do"), rows)
    if any(check.status == "error" for check in found):
        raise typer.Exit(Status.REFUSED)


def _machine(data_dir: Path, host: str, port: int) -> "list[Check]":
    from ..doctor.machine import examine

    return list(examine(data_dir, host, port))


def _server(url: str, key_file: Path | None) -> "list[Check]":
    from ..doctor.server import ask

    try:
        with probe(url, key_file, _SECONDS) as http:
            return list(ask(http))
    except CannotAsk as error:
        raise refusal(str(error), Status.USAGE) from None
