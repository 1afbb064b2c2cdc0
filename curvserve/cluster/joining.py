"""How this process comes to a Ray cluster, and what there is to compute on."""

import logging
import os
import signal
from collections.abc import Sequence

import ray
import torch

from ..server.device import DeviceNotFound, chosen_devices
from .options import NoCluster

KINDS = ("auto", "cpu", "cuda")


def join(address: str | None) -> None:
    """Connect this process to a Ray cluster.

    Args:
        address: `auto`, `host:port` or `ray://host:port`; None to begin one of this machine, which
            ends with this process.

    Raises:
        NoCluster: there is none.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nobody is told that one was begun
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        ray.init(
            address=address or "local",
            namespace="curvserve",
            include_dashboard=None if address else False,
            log_to_driver=False,
            logging_level=logging.WARNING,
        )
    except (ConnectionError, ValueError, RuntimeError) as error:
        where = address or "this machine"
        reason = str(error).strip().partition("\n")[0]
        raise NoCluster(f"no Ray cluster at {where}: {reason}") from error
    finally:
        for number, handler in handlers.items():  # how this process ends is its own affair
            signal.signal(number, handler)


def find_kinds(choices: Sequence[str], models: Sequence[str]) -> dict[str, torch.device]:
    """Return on what kind of device the workers of each model compute; Ray chooses which.

    Args:
        choices: as for `curvserve.server.device.find_devices`, of `auto`, `cpu` and `cuda`; `auto`
            is a GPU where the cluster has any.
        models: names of the models.

    Raises:
        DeviceNotFound: another device, or no such model.
    """
    resources = ray.cluster_resources()  # type: ignore[no-untyped-call]
    gpus = resources.get("GPU", 0) >= 1
    found = {}
    for name, kind in chosen_devices(choices, models).items():
        if kind not in KINDS:
            known = ", ".join(KINDS)
            raise DeviceNotFound(f"device {kind!r}: with --executor ray one of {known}")
        found[name] = torch.device(
            "cpu" if kind == "cpu" or (kind == "auto" and not gpus) else "cuda"
        )
    return found
