"""What goes back from the outputs, for contestants that are written here; no code of the engine."""

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributions import Categorical

from ..case import Task

QUANTITIES = frozenset({"DiagGGNMC", "DiagGGNExact", "BatchGrad"})


def refusal(task: Task) -> str:
    """Return why there are no columns for a task."""
    loss: Any = task.loss
    options = ("reduction", "weight", "ignore_index", "label_smoothing")
    plain = isinstance(loss, nn.CrossEntropyLoss) and all(
        getattr(loss, option) == getattr(nn.CrossEntropyLoss(), option) for option in options
    )
    return "" if plain and task.targets.dim() == 1 else "it is written for a plain cross entropy"


def columns(outputs: Tensor, task: Task) -> Tensor:
    """Return the vectors that go back, `[V, N, C]`, for a mean cross entropy.

    Their products with a sample's Jacobian are its gradient (`BatchGrad`, V = 1), or are to be
    squared and added up (the diagonals). Draws are torch's and BackPACK's, number for number.
    """
    p = outputs.detach().softmax(1)
    if task.quantity == "BatchGrad":
        return ((p - _one_hot(task.targets, p)) / len(p)).unsqueeze(0)
    if task.quantity == "DiagGGNExact":
        root = p.sqrt()
        unit = torch.diag_embed(root)  # [N, C, V]
        whole = unit - p.unsqueeze(2) * root.unsqueeze(1)
        return whole.movedim(2, 0) / math.sqrt(len(p))
    drawn = Categorical(p).sample(torch.Size([task.mc_samples]))
    return (p - _one_hot(drawn, p)) / math.sqrt(len(p) * task.mc_samples)


def _one_hot(labels: Tensor, like: Tensor) -> Tensor:
    return nn.functional.one_hot(labels, like.shape[1]).to(like.dtype)
