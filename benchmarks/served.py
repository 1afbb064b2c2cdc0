"""mnist_cnn in float64: what a served step is checked with, over the same wire."""

from dataclasses import replace

import torch
from torch import Tensor, nn

from curvserve.data import normalise
from curvserve.models import Model, resolve
from curvserve.models.mnist_cnn import network


def exact() -> Model:
    """Return the recipe."""
    model = resolve("mnist_cnn")
    inputs = replace(model.inputs, dtype=torch.float64, conversions={torch.uint8: _normalised})
    return replace(model, name="mnist_cnn_exact", build=_network, inputs=inputs)


def _network() -> nn.Module:
    return network().double()


def _normalised(images: Tensor) -> Tensor:
    return normalise(images).double()
