"""The built-in models: their numbers against brute force in float64, and that they learn."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from curvserve.engine import evaluate
from curvserve.engine.draws import SeededDraws
from curvserve.models import (
    available,
    byte_transformer,
    check,
    cifar_3c3d,
    find_support,
    mlp,
    mnist_cnn,
    resnet18_cifar,
    resolve,
)
from curvserve.models.metrics import accuracy, perplexity
from curvserve.models.support import SERVED
from tests.conformance.test_architectures import largest_error, reference

Built = tuple[nn.Module, Tensor]


def small_transformer() -> Built:
    return byte_transformer.ByteTransformer(8, 2, 2, 7, 5), torch.randint(7, (2, 5))


def residual() -> Built:
    network = resnet18_cifar.network(zero_init_residual=False)
    for norm in (m for m in network.modules() if isinstance(m, nn.BatchNorm2d)):
        norm.running_mean.normal_(0, 0.1)
        norm.running_var.uniform_(1, 2)
    for parameter in network.parameters():
        parameter.requires_grad_(parameter.numel() < 2e5)  # of the reference's time
    return network, torch.randn(2, 3, 8, 8)


SMALL: dict[str, Callable[[], Built]] = {
    "byte_transformer": small_transformer,
    "cifar_3c3d": lambda: (cifar_3c3d.network(), torch.randn(2, 3, 32, 32)),
    "mlp": lambda: (mlp.network(width=8), torch.randn(2, 1, 28, 28)),
    "mnist_cnn": lambda: (mnist_cnn.network(), torch.randn(2, 1, 28, 28)),
    "resnet18_cifar": residual,
}


@pytest.mark.parametrize("name", SMALL)
def test_gradient_and_diagonals_are_those_of_brute_force(name: str) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network, inputs = SMALL[name]()
        network = network.double()
        inputs = inputs.double() if inputs.is_floating_point() else inputs
        outputs = network(inputs)
        targets = torch.randint(outputs.shape[1], (len(inputs), *outputs.shape[2:]))
    loss = nn.CrossEntropyLoss()
    rows, diagonal = reference(network, loss, inputs, targets)
    drawn = SeededDraws(4, 2).classes(outputs.detach().softmax(1).movedim(1, -1), 1)[0]
    drawn_rows, _ = reference(network, nn.CrossEntropyLoss(reduction="sum"), inputs, drawn)
    wanted = ["grad", "diag_ggn_exact", "diag_ggn_mc"]
    found = evaluate(network, loss, inputs, targets, wanted, seed=4).quantities
    assert largest_error(found["grad"], {n: row.sum(0) for n, row in rows.items()}) < 1e-11
    assert largest_error(found["diag_ggn_exact"], diagonal) < 1e-11
    terms = targets.numel()
    sampled = {n: row.square().sum(0) / terms for n, row in drawn_rows.items()}
    assert largest_error(found["diag_ggn_mc"], sampled) < 1e-11


def test_every_built_in_model_is_compared_with_brute_force() -> None:
    assert available() == sorted(SMALL)


@pytest.mark.parametrize("name", ["mlp", "cifar_3c3d"])
def test_a_built_in_model_has_every_quantity(name: str) -> None:
    model = resolve(name)
    network, loss = check(model)
    assert find_support(model, network, loss, torch.device("cpu")).quantities == SERVED


def test_the_norms_of_the_residual_net_are_fixed_and_nothing_else_is() -> None:
    network = resnet18_cifar.network()
    modes = {type(module).__name__: module.training for module in network.modules()}
    assert modes["BatchNorm2d"] is False
    assert all(training for kind, training in modes.items() if kind != "BatchNorm2d")
    assert network(torch.zeros(2, 3, 32, 32)).shape == (2, 10)


def test_the_transformer_sees_no_byte_that_comes_later() -> None:
    network, text = byte_transformer.ByteTransformer(), torch.randint(256, (1, 64))
    other = text.clone()
    other[0, 40:] = 0
    logits, changed = network(text), network(other)
    assert logits.shape == (1, 256, 64)
    assert torch.allclose(logits[..., :40], changed[..., :40], atol=1e-5)
    assert not torch.allclose(logits[..., 40:], changed[..., 40:], atol=1e-2)


@pytest.mark.parametrize("name", ["cifar_3c3d", "resnet18_cifar"])
def test_colours_sent_as_bytes_are_normalised(name: str) -> None:
    images = torch.tensor([[0, 255]], dtype=torch.uint8).expand(2, 3, 16, 2).reshape(2, 3, 4, 8)
    found = resolve(name).inputs.convert(images)
    for colour, (mean, deviation) in enumerate(
        [(0.4914, 0.2470), (0.4822, 0.2435), (0.4465, 0.2616)]
    ):
        assert found[0, colour, 0, 0].item() == pytest.approx(-mean / deviation)
        assert found[1, colour, 0, 1].item() == pytest.approx((1 - mean) / deviation)


def test_metrics_of_positions_are_those_of_all_of_them() -> None:
    logits = torch.zeros(2, 4, 3)
    logits[:, 1] = 1e3
    targets = torch.tensor([[1, 1, 0], [1, 2, 1]])
    assert accuracy(logits, targets).item() == pytest.approx(4 / 6)
    assert perplexity(torch.zeros(2, 4, 3), targets).item() == pytest.approx(4)
