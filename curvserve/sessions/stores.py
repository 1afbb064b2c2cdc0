"""Which store an operator's words mean."""

import os
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from pathlib import Path

import torch

from .. import __version__
from ..engine import native
from .storage import FolderStore, Level, MemoryStore, Store


class NoDataFolder(ValueError):
    """A durability level needs a data folder, or has no use for one; the text says which."""


def store_opener(
    folder: Path | None,
    level: str | None,
    devices: Iterable[torch.device],
    executor: str = "inline",
) -> Callable[[], Store]:
    """Return what opens the store.

    Args:
        folder: the data folder.
        level: a name of `Level`; None for `full` with a folder and `none` without.
        devices: where steps are computed.
        executor: who computes them.

    Raises:
        NoDataFolder: the level and the folder do not fit.
    """
    chosen = Level(level or (Level.NONE if folder is None else Level.FULL))
    if folder is None and chosen is not Level.NONE:
        raise NoDataFolder(f"--durability {chosen} keeps steps on disk: give --data-dir FOLDER")
    if folder is None or chosen is Level.NONE:
        if folder is not None:
            raise NoDataFolder("--durability none keeps nothing: leave --data-dir out")
        return MemoryStore
    return partial(FolderStore, folder, chosen, environment(devices, executor))


def environment(devices: Iterable[torch.device], executor: str = "inline") -> Mapping[str, str]:
    """Return what decides over the bits of a step: a replay elsewhere may give others.

    Args:
        devices: where steps are computed.
        executor: who computes them; how many share a batch decides in which order is added up.
    """
    names = sorted({_name(device) for device in devices})
    cuda = names != ["cpu"] and torch.cuda.is_available()
    versions = {"cuDNN": str(torch.backends.cudnn.version())} if cuda else {}
    return {
        "curvserve": __version__,
        "torch": torch.__version__,
        "device": ", ".join(names),
        "executor": executor,
        "vector instructions": torch.backends.cpu.get_cpu_capability(),
        "own kernels": native.instructions() or "none",
        "threads": str(torch.get_num_threads()),
        "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "not set"),
        **versions,
    }


def _name(device: torch.device) -> str:
    here = device.type == "cuda" and torch.cuda.is_available()
    return torch.cuda.get_device_name(device) if here else device.type
