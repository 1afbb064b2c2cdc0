"""Models so small that a server takes hundreds of steps a second.

Dropout draws from the seed of each version; batch normalisation has buffers.
"""

from collections.abc import Callable

import torch
from torch import nn

from curvserve.models import Model, SampleSpec
from curvserve.models.metrics import accuracy

INPUTS, CLASSES = 6, 3


def tiny() -> Model:
    """Return the recipe of two layers with dropout between them."""
    return _model("tiny", lambda: nn.Dropout(0.1))


def normalised() -> Model:
    """Return the same with batch normalisation instead."""
    return _model("normalised", lambda: nn.BatchNorm1d(8))


def _model(name: str, middle: Callable[[], nn.Module]) -> Model:
    def build() -> nn.Sequential:
        return nn.Sequential(nn.Linear(INPUTS, 8), middle(), nn.Tanh(), nn.Linear(8, CLASSES))

    return Model(
        name=name,
        build=build,
        loss=nn.CrossEntropyLoss,
        inputs=SampleSpec(shape=(INPUTS,), dtype=torch.float32),
        targets=SampleSpec(shape=(), dtype=torch.int64, minimum=0, maximum=CLASSES - 1),
        metrics={"accuracy": accuracy},
        max_batch=64,
    )
