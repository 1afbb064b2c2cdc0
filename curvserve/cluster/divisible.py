"""Whether the samples of a batch can be computed in different places."""

import torch
from torch import nn

from ..engine.share import watched
from ..models import Model
from ..models.check import batch, check


def is_divisible(model: Model) -> bool:
    """Tell whether a model gives its samples the outputs that each has alone.

    It does not where a pass draws random numbers (dropout), changes buffers (batch normalisation in
    training mode) or mixes samples otherwise. Two made-up samples are tried, as the model is built.

    Args:
        model: the recipe.
    """
    network, _ = check(model)
    inputs, _ = batch(model, torch.device("cpu"))
    with torch.no_grad(), torch.random.fork_rng([]):
        with watched(network) as steady:
            together = network(inputs)
        alone = _alone(network, inputs)
    return steady.holds and alone is not None and torch.allclose(together, alone, 1e-3, 1e-4)


def _alone(network: nn.Module, inputs: torch.Tensor) -> torch.Tensor | None:
    try:
        return torch.cat([network(inputs[:1]), network(inputs[1:])])
    except (RuntimeError, ValueError):  # a single sample has no statistics
        return None
