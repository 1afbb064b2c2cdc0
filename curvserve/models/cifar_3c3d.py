"""3C3D: three convolutions and three linear layers for CIFAR-10.

Schneider, Balles, Hennig, "DeepOBS: a deep learning optimizer benchmark suite", ICLR 2019.
"""

from torch import nn

from ..data import cifar
from .images import class_of, colour_image
from .metrics import accuracy
from .model import Model
from .registry import register

CLASSES = 10


def network() -> nn.Sequential:
    """Return the network with freshly drawn parameters: [N, 3, 32, 32] -> [N, 10] logits."""
    return nn.Sequential(
        nn.Conv2d(3, 64, 5),
        nn.ReLU(),
        nn.MaxPool2d(3, 2, ceil_mode=True),
        nn.Conv2d(64, 96, 3),
        nn.ReLU(),
        nn.MaxPool2d(3, 2, ceil_mode=True),
        nn.Conv2d(96, 128, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(3, 2, ceil_mode=True),
        nn.Flatten(),
        nn.Linear(1152, 512),
        nn.ReLU(),
        nn.Linear(512, 256),
        nn.ReLU(),
        nn.Linear(256, CLASSES),
    )


@register
def cifar_3c3d() -> Model:
    """Return the recipe: 32x32 colour images to ten classes, mean cross entropy, accuracy."""
    return Model(
        name="cifar_3c3d",
        build=network,
        loss=nn.CrossEntropyLoss,
        inputs=colour_image(32, cifar.MEAN, cifar.STANDARD_DEVIATION),
        targets=class_of(CLASSES, "the class of CIFAR-10"),
        metrics={"accuracy": accuracy},
    )
