"""ResNet-18 for CIFAR-10, its batch norms fixed.

He, Zhang, Ren, Sun, "Deep residual learning for image recognition", CVPR 2016. Each residual
branch begins at zero, which makes up for norms that do not follow the batch: De, Smith, "Batch
normalization biases residual blocks towards the identity function in deep networks", NeurIPS 2020.
"""

from torch import nn

from ..data import cifar
from .images import class_of, colour_image
from .metrics import accuracy
from .model import Model
from .norms import fixed
from .registry import register

CLASSES = 10


def network(zero_init_residual: bool = True) -> nn.Module:
    """Return the network with freshly drawn parameters: [N, 3, 32, 32] -> [N, 10] logits.

    torchvision's, with the usual stem for small images: a 3x3 convolution, no stride, no pooling.

    Args:
        zero_init_residual: whether the last norm of each branch begins with the scale 0 rather
            than 1, with which the usual steps diverge.
    """
    from torchvision.models import resnet18  # type: ignore[import-untyped]  # a second to load

    made: nn.Module = resnet18(num_classes=CLASSES, zero_init_residual=zero_init_residual)
    made.conv1 = nn.Conv2d(3, 64, 3, 1, 1, bias=False)
    made.maxpool = nn.Identity()
    return fixed(made)


@register
def resnet18_cifar() -> Model:
    """Return the recipe: 32x32 colour images to ten classes, mean cross entropy, accuracy."""
    return Model(
        name="resnet18_cifar",
        build=network,
        loss=nn.CrossEntropyLoss,
        inputs=colour_image(32, cifar.MEAN, cifar.STANDARD_DEVIATION),
        targets=class_of(CLASSES, "the class of CIFAR-10"),
        metrics={"accuracy": accuracy},
        max_batch=1024,
    )
