"""A served model whose forward pass fails in a way that nobody expects."""

import torch
from torch import Tensor, nn

from curvserve.models import Model, SampleSpec
from curvserve.models.dry_run import SAMPLES

MESSAGE = "wires crossed\n2026-01-01T00:00:00 error forged line\x1b[31m"


class Broken(nn.Module):
    """Raises, with a message that tries to look like two lines of log, once a client calls."""

    def forward(self, inputs: Tensor) -> Tensor:
        """Fail."""
        if len(inputs) == SAMPLES:
            return inputs
        raise KeyError(MESSAGE) from ValueError(MESSAGE)


def model() -> Model:
    """Return the recipe."""
    return Model(
        name="broken",
        build=lambda: nn.Sequential(nn.Linear(2, 1), Broken()),
        loss=nn.MSELoss,
        inputs=SampleSpec(shape=(2,), dtype=torch.float32),
        targets=SampleSpec(shape=(1,), dtype=torch.float32),
    )
