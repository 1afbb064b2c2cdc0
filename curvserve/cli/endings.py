"""How a command ends: its exit status, and one line on standard error where it failed."""

from collections.abc import Iterator
from contextlib import contextmanager
from enum import IntEnum

import typer


class Status(IntEnum):
    """What the exit status of a command says; 130 is Ctrl-C, as in every shell."""

    DONE = 0
    REFUSED = 1
    USAGE = 2
    UNREACHABLE = 3


def refusal(message: str, status: Status = Status.REFUSED) -> typer.Exit:
    """Say why a command does not do what it was asked for, and return what ends it."""
    typer.echo(f"curvserve: {message}", err=True)
    return typer.Exit(status)


@contextmanager
def refusing(*kinds: type[Exception]) -> Iterator[None]:
    """Turn errors whose text says it all into the end of the command."""
    try:
        yield
    except kinds as error:
        raise refusal(str(error)) from None
