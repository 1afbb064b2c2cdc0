"""A model whose targets are not those that its loss compares with."""

import torch
from torch import nn

from curvserve.models import Model, SampleSpec


def model() -> Model:
    """Return the recipe: three outputs, four targets."""
    return Model(
        name="misfit",
        build=lambda: nn.Linear(2, 3),
        loss=nn.BCEWithLogitsLoss,
        inputs=SampleSpec(shape=(2,), dtype=torch.float32),
        targets=SampleSpec(shape=(4,), dtype=torch.float32, minimum=0, maximum=1),
    )
