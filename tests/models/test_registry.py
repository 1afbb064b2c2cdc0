"""Where models are found, and how a reference that leads nowhere is refused."""

import pytest
import torch
from torch import nn

from curvserve.models import Model, ModelNotFound, SampleSpec, available, resolve

ONE = SampleSpec(shape=(1,), dtype=torch.float32)

HERE = Model("here", lambda: nn.Linear(1, 1), nn.MSELoss, inputs=ONE, targets=ONE)

NOT_A_MODEL = 3


def make() -> Model:
    return HERE


def test_the_built_in_model_is_registered() -> None:
    assert "mnist_cnn" in available()
    assert resolve("mnist_cnn").name == "mnist_cnn"


@pytest.mark.parametrize("attribute", ["HERE", "make"])
def test_a_model_is_found_by_module_and_attribute(attribute: str) -> None:
    assert resolve(f"tests.models.test_registry:{attribute}").name == "here"


@pytest.mark.parametrize(
    ("reference", "reason"),
    [
        ("mnist_cmm", "no model is called 'mnist_cmm'; known: .*mnist_cnn"),
        ("no.such.module:model", "cannot be imported"),
        ("tests.models.test_registry:absent", "cannot be imported"),
        (":model", "cannot be imported"),
        ("tests.models.test_registry:NOT_A_MODEL", "is a int, not a curvserve Model"),
    ],
)
def test_a_reference_that_leads_nowhere_is_refused_with_the_reason(
    reference: str, reason: str
) -> None:
    with pytest.raises(ModelNotFound, match=reason):
        resolve(reference)


def test_mnist_cnn_is_the_network_of_the_example() -> None:
    network = resolve("mnist_cnn").build()
    kinds = [type(layer).__name__ for layer in network.children()]
    convolution = ["Conv2d", "ReLU", "MaxPool2d"]
    assert kinds == [*convolution, *convolution, "Flatten", "Linear", "ReLU", "Linear"]
    shapes = [tuple(parameter.shape) for parameter in network.parameters()]
    assert shapes[0::2] == [(20, 1, 5, 5), (50, 20, 5, 5), (500, 800), (10, 500)]
    assert network(torch.zeros(3, 1, 28, 28)).shape == (3, 10)


def test_accuracy_is_the_share_of_right_answers() -> None:
    accuracy = resolve("mnist_cnn").metrics["accuracy"]
    outputs = torch.eye(10)[[3, 4, 5, 6]]
    assert accuracy(outputs, torch.tensor([3, 4, 5, 0])).item() == 0.75
