"""How commands reach a running server."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from .endings import Status, refusal

if TYPE_CHECKING:
    from curvserve_client import Client

URL = "http://127.0.0.1:8000"

Url = Annotated[
    str,
    typer.Option("--url", envvar="CURVSERVE_URL", help="The server; unix:/path of a socket."),
]
KeyFile = Annotated[
    Path | None,
    typer.Option(
        "--api-key-file",
        envvar="CURVSERVE_API_KEY_FILE",
        help="File with the API key; without it that in CURVSERVE_API_KEY, if any.",
    ),
]
# a key given as an argument could be read by every user of the machine: there is no such option


class CannotAsk(Exception):
    """A server cannot even be asked: no URL, or no key where one was named."""


def read_key(file: Path | None) -> str | None:
    """Return the API key of a file; None without one.

    Raises:
        CannotAsk: it cannot be read.
    """
    if file is None:
        return None
    try:
        return file.read_text().strip()
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is no text"
        raise CannotAsk(f"cannot read the API key in {file}: {reason}") from error


@contextmanager
def server(url: str, key_file: Path | None) -> Iterator["Client"]:
    """Yield a client of a server.

    Raises:
        typer.Exit: the server refuses, or cannot be reached; what it says was printed.
    """
    from curvserve_client import Client, ConnectionFailed, CurvserveError, DeadlinePassed

    try:
        client = Client(url, api_key=read_key(key_file))
    except (ValueError, CannotAsk) as error:
        raise refusal(str(error), Status.USAGE) from None
    with client:
        try:
            yield client
        except (ConnectionFailed, DeadlinePassed) as error:
            raise refusal(str(error), Status.UNREACHABLE) from None
        except CurvserveError as error:
            raise refusal(str(error)) from None
