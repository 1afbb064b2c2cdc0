"""Quantiles of many tensors at a cost that does not grow with them."""

import torch
from torch import Tensor

from .base import Tensors

SAMPLE = 10_000
"""About how many coordinates are looked at."""

LEVELS = {"q10": 0.1, "q50": 0.5, "q90": 0.9}


def level_quantiles(name: str, tensors: Tensors, damping: float) -> dict[str, Tensor]:
    """Return quantiles of evenly spaced coordinates: `<name>_q10`, `<name>_q50`, `<name>_q90`.

    And `damped`, the share of coordinates that are less than the damping: where it rules, a step
    is one of plain gradient descent.

    Args:
        name: what the tensors are called.
        tensors: parameter name -> tensor.
        damping: what is added to the coordinates.
    """
    stride = max(1, sum(tensor.numel() for tensor in tensors.values()) // SAMPLE)
    sample = torch.cat([tensor.flatten()[::stride].float() for tensor in tensors.values()])
    found = torch.quantile(sample, torch.tensor(list(LEVELS.values()), device=sample.device))
    levels = {f"{name}_{level}": value for level, value in zip(LEVELS, found, strict=True)}
    return levels | {"damped": (sample < damping).float().mean()}
