"""A bound on each coordinate of a direction."""

import torch
from torch import Tensor

from .base import Tensors


def clipped(directions: Tensors, bound: float) -> tuple[Tensors, Tensor]:
    """Return the directions with each coordinate within [-bound, bound], and the share beyond it.

    Args:
        directions: parameter name -> tensor.
        bound: the largest size of a coordinate, > 0.

    Returns:
        The directions, and a 0-dim tensor in [0, 1].
    """
    beyond = torch.stack([(d.abs() > bound).sum() for d in directions.values()]).sum()
    share = beyond / sum(d.numel() for d in directions.values())
    return {name: d.clamp(-bound, bound) for name, d in directions.items()}, share
