"""The smallest model that can be served: a step takes a millisecond, so a test can make many."""

import torch
from torch import nn

from curvserve.models import Model, SampleSpec
from curvserve.models.metrics import accuracy

REFERENCE = "tests.server.tiny:model"
FEATURES, CLASSES, MAX_BATCH = 3, 3, 16


def model() -> Model:
    """Return the recipe: three numbers to three classes, one linear layer."""
    return Model(
        name="tiny",
        build=lambda: nn.Linear(FEATURES, CLASSES),
        loss=nn.CrossEntropyLoss,
        inputs=SampleSpec(shape=(FEATURES,), dtype=torch.float32),
        targets=SampleSpec(shape=(), dtype=torch.int64, minimum=0, maximum=CLASSES - 1),
        metrics={"accuracy": accuracy},
        max_batch=MAX_BATCH,
    )


def batch(samples: int = 4, scale: float = 1.0) -> dict[str, torch.Tensor]:
    """Return a legal batch; another scale, another batch."""
    inputs = scale * torch.arange(samples * FEATURES, dtype=torch.float32).reshape(samples, -1)
    return {"inputs": inputs / inputs.numel(), "targets": torch.arange(samples) % CLASSES}
