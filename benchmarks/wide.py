"""A model of 94 MB whose computation is next to nothing: what the wire is timed with."""

import torch
from torch import Tensor, nn

from curvserve.models import Model, SampleSpec

ROWS, COLUMNS = 23_500, 1000  # 94 MB in float32
PIXELS = 28 * 28


class Wide(nn.Module):
    """The mean of the inputs, times one number of a large matrix."""

    def __init__(self) -> None:
        """Make the matrix."""
        super().__init__()
        self.scale = nn.Parameter(torch.ones(1))
        self.ballast = nn.Parameter(torch.zeros(ROWS, COLUMNS), requires_grad=False)

    def forward(self, inputs: Tensor) -> Tensor:
        """Return one output a sample."""
        return inputs.mean((1, 2, 3), keepdim=True).flatten(1) * self.scale


def model() -> Model:
    """Return the recipe."""
    return Model(
        name="wide",
        build=Wide,
        loss=nn.MSELoss,
        inputs=SampleSpec(shape=(1, 28, 28), dtype=torch.float32),
        targets=SampleSpec(shape=(1,), dtype=torch.float32),
        max_batch=64,
    )
