"""The nets that are timed, each with a batch of its usual size."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from curvserve.data import load_digits, normalise
from curvserve.models.mnist_cnn import network


@dataclass(frozen=True)
class Case:
    """A net and its batch.

    Attributes:
        name: what it is called.
        build: makes the net.
        batch: how many samples.
        shape: of one of them.
        classes: how many there are.
        all_quantities: whether more than the Monte-Carlo diagonal is timed.
    """

    name: str
    build: Callable[[], nn.Module]
    batch: int
    shape: Sequence[int]
    classes: int
    all_quantities: bool = False

    def data(self, device: torch.device, batch: int | None = None) -> tuple[Tensor, Tensor]:
        """Return inputs and labels: digits where they have the right shape, otherwise noise."""
        size = batch or self.batch
        if tuple(self.shape) == (1, 28, 28):
            images, labels = (tensor[:size].to(device) for tensor in load_digits("train"))
            return normalise(images), labels
        generator = torch.Generator().manual_seed(0)
        inputs = torch.randn(size, *self.shape, generator=generator)
        return inputs.to(device), torch.randint(self.classes, (size,), generator=generator).to(
            device
        )


def mlp() -> nn.Module:
    """Return 784-512-256-10 with ReLU."""
    return nn.Sequential(
        nn.Flatten(),
        nn.Linear(784, 512), nn.ReLU(),
        nn.Linear(512, 256), nn.ReLU(),
        nn.Linear(256, 10),
    )  # fmt: skip


def net_3c3d() -> nn.Module:
    """Return three convolutions and three linear layers for 32x32 images.

    Schneider, Balles, Hennig, "DeepOBS: a deep learning optimizer benchmark suite", ICLR 2019.
    """
    return nn.Sequential(
        nn.Conv2d(3, 64, 5), nn.ReLU(), nn.MaxPool2d(3, 2, ceil_mode=True),
        nn.Conv2d(64, 96, 3), nn.ReLU(), nn.MaxPool2d(3, 2, ceil_mode=True),
        nn.Conv2d(96, 128, 3, padding=1), nn.ReLU(), nn.MaxPool2d(3, 2, ceil_mode=True),
        nn.Flatten(),
        nn.Linear(1152, 512), nn.ReLU(),
        nn.Linear(512, 256), nn.ReLU(),
        nn.Linear(256, 10),
    )  # fmt: skip


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


CASES = (
    Case("mnist_cnn", network, 64, (1, 28, 28), 10, all_quantities=True),
    Case("mlp", mlp, 64, (1, 28, 28), 10, all_quantities=True),
    Case("3c3d", net_3c3d, 128, (3, 32, 32), 10),
    Case("all_cnn_c", all_cnn_c, 16, (3, 32, 32), 100),
)
