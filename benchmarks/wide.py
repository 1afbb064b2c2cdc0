"""Models whose computation is next to nothing, one of 94 MB: what the wire is timed with."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from curvserve.models import Model, SampleSpec

ROWS, COLUMNS = 23_500, 1000  # 94 MB in float32
PIXELS = 28 * 28


class Wide(nn.Module):
    """The mean of the inputs, times one number of a large matrix."""

    def __init__(self, rows: int = ROWS) -> None:
        """Make the matrix."""
        super().__init__()
        self.scale = nn.Parameter(torch.ones(1))
        self.ballast = nn.Parameter(torch.zeros(rows, COLUMNS), requires_grad=False)

    def forward(self, inputs: Tensor) -> Tensor:
        """Return one output a sample."""
        return inputs.mean((1, 2, 3), keepdim=True).flatten(1) * self.scale


def model() -> Model:
    """Return the recipe of the large one."""
    return _recipe("wide", Wide)


def small() -> Model:
    """Return the recipe of one that is as good as without a matrix."""
    return _recipe("small", lambda: Wide(rows=1))


def _recipe(name: str, build: Callable[[], nn.Module]) -> Model:
    return Model(
        name=name,
        build=build,
        loss=nn.MSELoss,
        inputs=SampleSpec(shape=(1, 28, 28), dtype=torch.float32),
        targets=SampleSpec(shape=(1,), dtype=torch.float32),
        max_batch=64,
    )
