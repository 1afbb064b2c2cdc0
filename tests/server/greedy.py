"""A served model that a batch of four fits on any device and one of eight on none."""

import torch
from torch import Tensor, nn

from curvserve.models import Model, SampleSpec

FITS, TOO_MANY = 4, 8


class Greedy(nn.Module):
    """Passes its input on, and takes 256 TiB for every eight samples meanwhile."""

    def forward(self, inputs: Tensor) -> Tensor:
        """Return the input."""
        inputs.new_empty(len(inputs) // TOO_MANY * 2**46)
        return inputs


def model() -> Model:
    """Return the recipe: two inputs, one output."""
    return Model(
        name="greedy",
        build=lambda: nn.Sequential(nn.Linear(2, 2), Greedy(), nn.Linear(2, 1)),
        loss=nn.MSELoss,
        inputs=SampleSpec(shape=(2,), dtype=torch.float32),
        targets=SampleSpec(shape=(1,), dtype=torch.float32),
    )


def batch(samples: int) -> dict[str, Tensor]:
    """Return a legal batch."""
    inputs = torch.arange(2.0 * samples).reshape(samples, 2)
    return {"inputs": inputs / inputs.numel(), "targets": torch.ones(samples, 1)}
