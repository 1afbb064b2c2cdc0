"""`curvserve checkpoints`: versions that a running server keeps under a name."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from .completion import complete_session
from .output import Json, print_json, print_record, print_table
from .reach import URL, KeyFile, Url, server
from .root import app
from .saving import Force, refuse_existing, save

if TYPE_CHECKING:
    from curvserve_client import CheckpointSpec

checkpoints = typer.Typer(help="Checkpoints of a running server's sessions.", no_args_is_help=True)
app.add_typer(checkpoints, name="checkpoints")

Session = Annotated[str, typer.Argument(help="The session.", autocompletion=complete_session)]
Checkpoint = Annotated[str, typer.Argument(help="The checkpoint.")]


@checkpoints.command("list")
def list_checkpoints(
    session: Session, url: Url = URL, key_file: KeyFile = None, json: Json = False
) -> None:
    """List the checkpoints of a session, the oldest first."""
    with server(url, key_file) as client:
        found = [each.to_dict() for each in client.session(session).checkpoints()]
    if json:
        print_json(found)
        return
    head = ("name", "version", "size", "created", "with_rule_state")
    print_table(head, [[each[column] for column in head] for each in found])


@checkpoints.command()
def create(
    session: Session,
    name: Checkpoint,
    rule_state: Annotated[bool, typer.Option(help="Keep what the rule remembers too.")] = True,
    url: Url = URL,
    key_file: KeyFile = None,
    json: Json = False,
) -> None:
    """Keep the current version of a session under a name, for good."""
    with server(url, key_file) as client:
        made: CheckpointSpec = client.session(session).checkpoint(name, rule_state=rule_state)
    print_json(made.to_dict()) if json else print_record(made.to_dict())


@checkpoints.command()
def download(
    session: Session,
    name: Checkpoint,
    file: Annotated[Path, typer.Argument(help="A safetensors file, written whole or not at all.")],
    force: Force = False,
    url: Url = URL,
    key_file: KeyFile = None,
    json: Json = False,
) -> None:
    """Write a checkpoint to a file."""
    refuse_existing(file, force)
    with server(url, key_file) as client:
        tensors, metadata = client.session(session).read_checkpoint(name)
    size = save(file, tensors, metadata)
    version = int(metadata["version"])
    if json:
        told = {"session": session, "checkpoint": name, "version": version}
        print_json({**told, "file": file, "size": size})
    else:
        typer.echo(f"{file}: {session}/{name} at version {version}, {size} bytes")
