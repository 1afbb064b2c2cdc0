"""Models that workers share: every layer of a small network, in single and double precision."""

import torch
from torch import Tensor, nn

from curvserve.models import Model, SampleSpec
from curvserve.models.metrics import accuracy

CLASSES = 3


def convolutional(name: str, dtype: torch.dtype) -> Model:
    """Return a model of 1 x 6 x 6 images, whose mean loss weighs classes differently.

    So a part's share of the loss is not its share of the samples.
    """

    def build() -> nn.Sequential:
        return nn.Sequential(
            nn.Conv2d(1, 3, 3), nn.Tanh(), nn.Flatten(), nn.Linear(48, CLASSES)
        ).to(dtype)

    def loss() -> nn.CrossEntropyLoss:
        return nn.CrossEntropyLoss(weight=torch.tensor([0.5, 1.0, 3.0], dtype=dtype))

    return Model(
        name=name,
        build=build,
        loss=loss,
        inputs=SampleSpec(shape=(1, 6, 6), dtype=dtype),
        targets=SampleSpec(shape=(), dtype=torch.int64, minimum=0, maximum=CLASSES - 1),
        metrics={"accuracy": accuracy},
        max_batch=64,
    )


SINGLE = convolutional("single", torch.float32)
DOUBLE = convolutional("double", torch.float64)

single, double = SINGLE, DOUBLE  # as a command line names them


def dropped() -> Model:
    """Return a model that draws numbers as it goes: its samples cannot be divided."""
    made = convolutional("dropped", torch.float32)
    layers = made.build

    def build() -> nn.Sequential:
        return nn.Sequential(nn.Dropout(0.5), *layers())

    return Model(**{**vars(made), "build": build})


def batch(samples: int = 9, seed: int = 0, dtype: torch.dtype = torch.float64) -> dict[str, Tensor]:
    """Return a batch that every model here takes."""
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(samples, 1, 6, 6, generator=generator, dtype=torch.float64).to(dtype)
    return {"inputs": inputs, "targets": torch.arange(samples) % CLASSES}
