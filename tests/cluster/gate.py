"""A model whose passes can be held, to find a worker in the middle of one."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from time import sleep

from torch import Tensor, nn

from curvserve.models import Model
from tests.cluster.nets import SINGLE


class Gate(nn.Module):
    """Lets a batch through unless `closed` is there, and writes down who waits."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self._folder = folder

    def forward(self, x: Tensor) -> Tensor:
        if (self._folder / "closed").exists():
            (self._folder / f"{os.getpid()}.waits").touch()
        while (self._folder / "closed").exists():
            sleep(0.01)
        return x


def gated(folder: Path) -> Model:
    """Return a model with a gate of a folder."""

    def build() -> nn.Sequential:
        return nn.Sequential(Gate(folder), *SINGLE.build())

    return replace(SINGLE, name="gated", build=build)


@contextmanager
def closed(folder: Path) -> Iterator[Callable[[int], bool]]:
    """Close the gate for a block, which can ask whether a process waits there."""
    (folder / "closed").touch()
    try:
        yield lambda pid: (folder / f"{pid}.waits").exists()
    finally:
        (folder / "closed").unlink()
