"""`curvserve sessions`: the sessions of a running server."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from .completion import complete_session
from .endings import Status, refusal
from .output import Json, print_json, print_record, print_table
from .reach import URL, KeyFile, Url, server
from .root import app
from .saving import Force, refuse_existing, save

if TYPE_CHECKING:
    from curvserve_client import SessionInfo

sessions = typer.Typer(help="Sessions of a running server.", no_args_is_help=True)
app.add_typer(sessions, name="sessions")

Session = Annotated[str, typer.Argument(help="Its name.", autocompletion=complete_session)]


@sessions.command("list")
def list_sessions(url: Url = URL, key_file: KeyFile = None, json: Json = False) -> None:
    """List every session, the oldest first."""
    with server(url, key_file) as client:
        found = client.sessions()
    if json:
        print_json([each.to_dict() for each in found])
        return
    head = (
        "name",
        "model",
        "version",
        "durable",
        "steps",
        "rule",
        "durability",
        "owner",
        "problems",
    )
    rows = [
        (
            each.name,
            each.model,
            each.version,
            each.durable_version,
            each.steps,
            each.rule,
            each.durability,
            each.owner,
            len(each.problems),
        )
        for each in found
    ]
    print_table(head, rows)


@sessions.command()
def show(name: Session, url: Url = URL, key_file: KeyFile = None, json: Json = False) -> None:
    """Show one session."""
    with server(url, key_file) as client:
        info = client.session(name).info()
    _tell(info, json)


@sessions.command()
def create(
    model: Annotated[str, typer.Argument(help="The model.")],
    name: Annotated[str | None, typer.Option(help="Its name; the server's own choice.")] = None,
    seed: Annotated[
        int | None, typer.Option(min=0, help="Of its parameters and of every draw.")
    ] = None,
    from_checkpoint: Annotated[
        str | None, typer.Option(help="session/checkpoint to go on from.")
    ] = None,
    url: Url = URL,
    key_file: KeyFile = None,
    json: Json = False,
) -> None:
    """Begin a session."""
    with server(url, key_file) as client:
        made = client.create_session(model, name, seed=seed, from_checkpoint=from_checkpoint)
        info = made.info()
    _tell(info, json)


@sessions.command()
def delete(
    name: Session,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    url: Url = URL,
    key_file: KeyFile = None,
    json: Json = False,
) -> None:
    """End a session: its parameters, its history and its checkpoints are gone."""
    if not yes:
        if not sys.stdin.isatty():
            raise refusal(f"say --yes to delete {name}: nobody can be asked here", Status.USAGE)
        typer.confirm(f"Delete {name} and its checkpoints?", abort=True, err=True)
    with server(url, key_file) as client:
        client.delete_session(name)
    print_json({"deleted": name}) if json else typer.echo(f"deleted {name}")


@sessions.command()
def export(
    name: Session,
    file: Annotated[Path, typer.Argument(help="A safetensors file, written whole or not at all.")],
    force: Force = False,
    url: Url = URL,
    key_file: KeyFile = None,
    json: Json = False,
) -> None:
    """Write the current parameters to a file."""
    refuse_existing(file, force)
    with server(url, key_file) as client:
        session = client.session(name)
        tensors = session.pull()
    metadata = {"model": session.model, "session": name, "version": str(session.version)}
    size = save(file, tensors, metadata)
    if json:
        print_json({**metadata, "version": session.version, "file": file, "size": size})
    else:
        typer.echo(f"{file}: {name} at version {session.version}, {size} bytes")


def _tell(info: "SessionInfo", json: bool) -> None:
    document = info.to_dict()
    if json:
        print_json(document)
        return
    parameters = document.pop("parameters")
    options = ", ".join(f"{option}={value}" for option, value in document.pop("options").items())
    problems = "; ".join(document.pop("problems")) or "none"
    print_record({**document, "options": options, "problems": problems})
    typer.echo()
    rows = [(name, spec["dtype"], spec["shape"]) for name, spec in parameters.items()]
    print_table(("parameter", "dtype", "shape"), rows)
