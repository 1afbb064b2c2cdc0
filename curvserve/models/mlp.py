"""Three linear layers for MNIST's images."""

from torch import nn

from .images import class_of, grey_digit
from .metrics import accuracy
from .model import Model
from .registry import register

CLASSES = 10


def network(width: int = 512, classes: int = CLASSES) -> nn.Sequential:
    """Return the network with freshly drawn parameters: [N, 1, 28, 28] -> [N, classes] logits.

    Args:
        width: units of the first layer; the second has half as many.
        classes: units of the last.
    """
    return nn.Sequential(
        nn.Flatten(),
        nn.Linear(28 * 28, width),
        nn.ReLU(),
        nn.Linear(width, width // 2),
        nn.ReLU(),
        nn.Linear(width // 2, classes),
    )


@register
def mlp() -> Model:
    """Return the recipe: 28x28 grey images to ten classes, mean cross entropy, accuracy."""
    return Model(
        name="mlp",
        build=network,
        loss=nn.CrossEntropyLoss,
        inputs=grey_digit(),
        targets=class_of(CLASSES, "the digit"),
        metrics={"accuracy": accuracy},
    )
