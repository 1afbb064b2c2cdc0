"""The small MNIST network of BackPACK's example: two convolutions, two linear layers."""

from torch import nn

from .images import class_of, grey_digit
from .metrics import accuracy
from .model import Model
from .registry import register

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
        inputs=grey_digit(),
        targets=class_of(CLASSES, "the digit"),
        metrics={"accuracy": accuracy},
    )
