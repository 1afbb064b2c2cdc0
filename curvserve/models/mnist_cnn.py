"""The small MNIST network of BackPACK's example: two convolutions, two linear layers."""

import torch
from torch import nn

from ..data.normalise import normalise
from .metrics import accuracy
from .registry import Model, register
from .specification import SampleSpec

CLASSES = 10


def network() -> nn.Sequential:
    """Return the network with freshly drawn parameters: [N, 1, 28, 28] -> [N, 10] logits."""
    return nn.Sequential(
        nn.Conv2d(1, 20, 5, 1),
        nn.ReLU(),
        nn.MaxPool2d(2, 2),
        nn.Conv2d(20, 50, 5, 1),
        nn.ReLU(),
        nn.MaxPool2d(2, 2),
        nn.Flatten(),
        nn.Linear(4 * 4 * 50, 500),
        nn.ReLU(),
        nn.Linear(500, CLASSES),
    )


@register
def mnist_cnn() -> Model:
    """Return the recipe: 28x28 grey images to ten classes, mean cross entropy, accuracy."""
    return Model(
        name="mnist_cnn",
        build=network,
        loss=nn.CrossEntropyLoss,
        inputs=SampleSpec(
            shape=(1, 28, 28),
            dtype=torch.float32,
            conversions={torch.uint8: normalise},
            meaning="grey image: float32 normalised by mean 0.1307 and standard deviation 0.3081, "
            "or uint8 0..255, which the server normalises so",
        ),
        targets=SampleSpec(
            shape=(), dtype=torch.int64, minimum=0, maximum=CLASSES - 1, meaning="the digit"
        ),
        metrics={"accuracy": accuracy},
    )
