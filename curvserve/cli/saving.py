"""Tensors to files."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from .endings import refusal

if TYPE_CHECKING:
    from torch import Tensor

Force = Annotated[bool, typer.Option("--force", help="Replace a file that is there.")]


def refuse_existing(file: Path, force: bool) -> None:
    """Refuse to replace a file unless that is asked for.

    Raises:
        typer.Exit: it is there.
    """
    if file.exists() and not force:
        raise refusal(f"{file} exists; say --force to replace it")


def save(file: Path, tensors: "Mapping[str, Tensor]", metadata: Mapping[str, str]) -> int:
    """Write a safetensors file, whole or not at all, and return its size in bytes.

    Raises:
        typer.Exit: the disk refuses.
    """
    from curvserve_client import wire

    from ..sessions.storage.errors import StorageFailed
    from ..sessions.storage.files import write_whole

    parts = wire.encode(tensors, metadata)
    try:
        write_whole(file, parts)
    except StorageFailed as error:
        raise refusal(str(error)) from None
    return wire.length(parts)
