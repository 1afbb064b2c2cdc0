"""Where a server that has workers begins; loads Ray, which need not be installed otherwise."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from ..models import Model
from .options import ClusterOptions, NoCluster

if TYPE_CHECKING:
    from .executor import RayExecutor


def begin(
    models: Sequence[Model], devices: Sequence[str], options: ClusterOptions
) -> "tuple[dict[str, torch.device], RayExecutor]":
    """Join a cluster, or begin one, and return what the workers compute on, and the executor.

    Args:
        models: the recipes.
        devices: what an operator says of devices, see `joining.find_kinds`.
        options: the workers.

    Raises:
        NoCluster: Ray is not installed, or there is no cluster at the address.
        DeviceNotFound: workers have no such device.
    """
    try:
        from . import executor, joining, watch
    except ImportError as error:
        reason = f"--executor ray needs the extra: pip install 'curvserve[ray]' ({error})"
        raise NoCluster(reason) from error
    recipes = {model.name: model for model in models}
    chosen = joining.chosen_kinds(devices, list(recipes))
    joining.join(options.address)
    found = joining.find_kinds(chosen)
    # through `ray://` another process has a raylet, and Ray's client tells of its end
    remote = (options.address or "").startswith("ray://")
    watching = None if remote else watch.NodeWatch()
    return found, executor.RayExecutor(recipes, found, options, watching)
