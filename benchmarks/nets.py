"""The nets that are timed, each with a batch of its usual size."""

from functools import partial

import torch
from torch import Tensor, nn

from curvserve.bench import QUANTITIES, Case
from curvserve.data import load_digits, normalise
from curvserve.models import resnet18_cifar, torchvision_zoo
from curvserve.models.cifar_3c3d import network as net_3c3d
from curvserve.models.mlp import network as mlp
from curvserve.models.mnist_cnn import network as mnist_cnn


def digits(count: int) -> tuple[Tensor, Tensor]:
    """Return the first of the bundled digits."""
    images, labels = load_digits("train")
    return normalise(images[:count]), labels[:count]


def noise(shape: tuple[int, ...], classes: int, count: int) -> tuple[Tensor, Tensor]:
    """Return normal numbers and random labels."""
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(count, *shape, generator=generator)
    return inputs, torch.randint(classes, (count,), generator=generator)


def all_cnn_c() -> nn.Module:
    """Return nine convolutions and a mean for 32x32 images of 100 classes.

    Springenberg, Dosovitskiy, Brox, Riedmiller, "Striving for simplicity: the all convolutional
    net", ICLR 2015 (workshop).
    """

    def block(inputs: int, outputs: int, kernel: int, stride: int, padding: int) -> list[nn.Module]:
        return [nn.Conv2d(inputs, outputs, kernel, stride, padding), nn.ReLU()]

    return nn.Sequential(
        *block(3, 96, 3, 1, 1), *block(96, 96, 3, 1, 1), *block(96, 96, 3, 2, 1),
        *block(96, 192, 3, 1, 1), *block(192, 192, 3, 1, 1), *block(192, 192, 3, 2, 1),
        *block(192, 192, 3, 1, 0), *block(192, 192, 1, 1, 0), *block(192, 100, 1, 1, 0),
        nn.AvgPool2d(6), nn.Flatten(),
    )  # fmt: skip


def resnet18_as_it_is() -> nn.Module:
    """Return torchvision's ResNet-18, its norms fixed."""
    return _fixed(torchvision_zoo.network("resnet18", 32, 10))


def resnet18_for_cifar() -> nn.Module:
    """Return it with the usual stem for 32x32 images."""
    return _fixed(resnet18_cifar.network(zero_init_residual=False))


def _fixed(net: nn.Module) -> nn.Module:
    """Return a net in evaluation mode, the statistics of its norms those of one batch.

    Without, the outputs of a fresh net are so large that each class drawn is the likeliest one.
    """
    for norm in (m for m in net.modules() if isinstance(m, nn.BatchNorm2d)):
        norm.train().momentum = 1.0
    with torch.no_grad():
        net(noise((3, 32, 32), 10, 16)[0])
    return net.eval()


class Encoder(nn.Module):
    """A small transformer for 28x28 images: 49 patches, two layers of four heads, a mean."""

    def __init__(self, width: int = 64) -> None:
        """Make the layers."""
        super().__init__()
        self.patches = nn.Linear(16, width)
        layer = nn.TransformerEncoderLayer(width, 4, 4 * width, dropout=0.0, batch_first=True)
        self.layers = nn.TransformerEncoder(layer, 2)
        self.head = nn.Linear(width, 10)

    def forward(self, images: Tensor) -> Tensor:
        """Return one output for each class."""
        patches = images.unfold(2, 4, 4).unfold(3, 4, 4).flatten(1, 3).flatten(2)
        mixed: Tensor = self.layers(self.patches(patches))
        return self.head(mixed.mean(1))


ALL = tuple(QUANTITIES)
SOME = ("DiagGGNMC", "BatchGrad")
cifar = partial(noise, (3, 32, 32), 10)

CASES = (
    Case("mnist_cnn", mnist_cnn, digits, 64, ALL),
    Case("mnist_cnn", mnist_cnn, digits, 512),
    Case("3c3d", net_3c3d, cifar, 128, (*SOME, "KFAC")),
    Case("all_cnn_c", all_cnn_c, partial(noise, (3, 32, 32), 100), 16, SOME),
    Case("resnet18", resnet18_as_it_is, cifar, 64),
    Case("resnet18_cifar", resnet18_for_cifar, cifar, 64),
    Case("mlp", mlp, digits, 64, ALL),
    Case("mlp", mlp, digits, 512),
    Case("transformer", Encoder, digits, 64, (*SOME, "DiagGGNExact")),
)
