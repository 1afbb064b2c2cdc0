"""What a server would find on this machine, each thing with what to do about it."""

from collections.abc import Iterator
from pathlib import Path

from .check import Check
from .compute import compute
from .folder import folder
from .network import network
from .software import software


def examine(data_dir: Path, host: str, port: int) -> Iterator[Check]:
    """Yield what is found.

    Args:
        data_dir: where sessions would be kept; need not exist.
        host: address to listen on.
        port: port to listen on.
    """
    yield from software()
    yield from compute()
    yield from folder(data_dir)
    yield from network(host, port)
