"""How this process comes to a Ray cluster, and what there is to compute on."""

import logging
import os
import signal
from collections.abc import Mapping, Sequence

import ray
import torch

from ..server.device import DeviceNotFound, chosen_devices
from .options import NoCluster
from .transfer import WITH_THE_CALL

KINDS = ("auto", "cpu", "cuda")


_SETTINGS = {
    "RAY_USAGE_STATS_ENABLED": "0",  # nobody is told that a cluster was begun
    "RAY_worker_niceness": "0",  # or workers yield to everything else on the machine
    # what is smaller goes with the call: a batch of 200 KB by the object store takes 1.5 ms more
    "RAY_max_direct_call_object_size": str(2 * WITH_THE_CALL),
}


def join(address: str | None) -> None:
    """Connect this process to a Ray cluster.

    Args:
        address: `auto`, `host:port` or `ray://host:port`; None to begin one of this machine, which
            ends with this process.

    Raises:
        NoCluster: there is none.
    """
    for name, value in _SETTINGS.items():
        os.environ.setdefault(name, value)
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


def chosen_kinds(choices: Sequence[str], models: Sequence[str]) -> dict[str, str]:
    """Return on what kind of device the workers of each model are to compute.

    Args:
        choices: as for `curvserve.server.device.find_devices`, of `auto`, `cpu` and `cuda`.
        models: names of the models.

    Raises:
        DeviceNotFound: another device, or no such model.
    """
    chosen = chosen_devices(choices, models)
    for kind in chosen.values():
        if kind not in KINDS:
            known = ", ".join(KINDS)
            raise DeviceNotFound(f"device {kind!r}: with --executor ray one of {known}")
    return chosen


def find_kinds(chosen: Mapping[str, str]) -> dict[str, torch.device]:
    """Return these kinds with `auto` resolved: a GPU where the cluster has any.

    Args:
        chosen: model -> `auto`, `cpu` or `cuda`.
    """
    resources = ray.cluster_resources()  # type: ignore[no-untyped-call]  # Ray's own has no types
    auto = "cuda" if resources.get("GPU", 0) >= 1 else "cpu"
    return {name: torch.device(auto if k == "auto" else k) for name, k in chosen.items()}
