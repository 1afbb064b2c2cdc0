"""`curvserve backup`."""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from .endings import Status, refusal
from .output import Json, print_json
from .probe import probe
from .reach import URL, CannotAsk, KeyFile, Url
from .root import app
from .saving import Force, refuse_existing

if TYPE_CHECKING:
    import httpx

_SECONDS = 60.0


@app.command()
def backup(
    file: Annotated[Path, typer.Argument(help="A tar archive, written whole or not at all.")],
    force: Force = False,
    url: Url = URL,
    key_file: KeyFile = None,
    json: Json = False,
) -> None:
    """Write a running server's data folder to an archive, as it is at one moment.

    To restore it, unpack it into an empty folder and serve from there.
    """
    import httpx

    refuse_existing(file, force)
    unfinished = file.with_name(f".{file.name}.new")
    try:
        with probe(url, key_file, _SECONDS) as http, http.stream("GET", "/v1/backup") as answer:
            if answer.status_code != 200:
                raise _refused(answer)
            size = _write(unfinished, answer)
        os.replace(unfinished, file)
    except CannotAsk as error:
        raise refusal(str(error), Status.USAGE) from None
    except httpx.HTTPError as error:
        raise refusal(f"no backup from {url}: {error}", Status.UNREACHABLE) from None
    except OSError as error:
        raise refusal(f"cannot write {file}: {error.strerror}") from None
    finally:
        unfinished.unlink(missing_ok=True)
    print_json({"file": file, "size": size}) if json else typer.echo(f"{file}: {size} bytes")


def _write(file: Path, answer: "httpx.Response") -> int:
    """Write a body to a file that only its owner can read, and return its size."""
    from tqdm import tqdm

    expected = int(answer.headers.get("content-length", 0))
    descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    with (
        os.fdopen(descriptor, "wb") as opened,
        tqdm(total=expected, unit="B", unit_scale=True, disable=None, leave=False) as bar,
    ):
        for chunk in answer.iter_bytes():
            opened.write(chunk)
            bar.update(len(chunk))
        opened.flush()
        os.fsync(opened.fileno())
        return opened.tell()


def _refused(answer: "httpx.Response") -> typer.Exit:
    answer.read()
    problem = answer.headers.get("content-type") == "application/problem+json"
    told = answer.json()["detail"] if problem else f"status {answer.status_code}"
    return refusal(f"no backup from {answer.url.copy_with(path='/')}: {told}")
