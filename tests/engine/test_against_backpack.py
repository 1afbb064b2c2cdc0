"""With the same random draws the numbers are those of the BackPACK package, to rounding."""

import copy
import warnings
from collections.abc import Callable

import backpack as peer
import backpack.extensions as peer_extensions
import pytest
import torch
from torch import Tensor, nn

from curvserve.engine import backpack, extend, extensions

N = 6


def seed_cnn() -> tuple[nn.Module, Tensor]:
    model = nn.Sequential(
        nn.Conv2d(1, 20, 5, 1), nn.ReLU(), nn.MaxPool2d(2, 2),
        nn.Conv2d(20, 50, 5, 1), nn.ReLU(), nn.MaxPool2d(2, 2),
        nn.Flatten(), nn.Linear(4 * 4 * 50, 500), nn.ReLU(), nn.Linear(500, 10),
    )  # fmt: skip
    return model, torch.randn(N, 1, 28, 28)


def mlp() -> tuple[nn.Module, Tensor]:
    model = nn.Sequential(
        nn.Linear(20, 16), nn.Sigmoid(), nn.Linear(16, 12), nn.Tanh(), nn.Linear(12, 10)
    )
    return model, torch.randn(N, 20)


def cross_entropy(reduction: str) -> tuple[nn.Module, Tensor]:
    return nn.CrossEntropyLoss(reduction=reduction), torch.randint(10, (N,))


def squared_error(reduction: str) -> tuple[nn.Module, Tensor]:
    return nn.MSELoss(reduction=reduction), torch.randn(N, 10)


EXTENSIONS = {
    "grad_batch": lambda e: e.BatchGrad(),
    "grad_batch of some": lambda e: e.BatchGrad(subsampling=[4, 0]),
    "diag_ggn_mc": lambda e: e.DiagGGNMC(),
    "diag_ggn_mc of three": lambda e: e.DiagGGNMC(mc_samples=3),
    "diag_ggn_exact": lambda e: e.DiagGGNExact(),
    "batch_l2": lambda e: e.BatchL2Grad(),
    "sum_grad_squared": lambda e: e.SumGradSquared(),
    "variance": lambda e: e.Variance(),
    "diag_ggn_exact_batch": lambda e: e.BatchDiagGGNExact(),
    "diag_ggn_mc_batch of two": lambda e: e.BatchDiagGGNMC(mc_samples=2),
    "sqrt_ggn_exact": lambda e: e.SqrtGGNExact(),
    "sqrt_ggn_exact of some": lambda e: e.SqrtGGNExact(subsampling=[4, 0]),
    "sqrt_ggn_mc of two": lambda e: e.SqrtGGNMC(mc_samples=2),
    "kfac of two": lambda e: e.KFAC(mc_samples=2),
    "kflr": lambda e: e.KFLR(),
    "diag_h": lambda e: e.DiagHessian(),
    "diag_h_batch": lambda e: e.BatchDiagHessian(),
}
PRODUCTS = {"ggnmp": lambda e: e.GGNMP(), "hmp": lambda e: e.HMP()}


@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("make_loss", [cross_entropy, squared_error])
@pytest.mark.parametrize("make_model", [seed_cnn, mlp])
@pytest.mark.parametrize("extension", EXTENSIONS)
def test_equal_to_rounding(
    extension: str,
    make_model: Callable[[], tuple[nn.Module, Tensor]],
    make_loss: Callable[[str], tuple[nn.Module, Tensor]],
    reduction: str,
) -> None:
    check_equal(extension, make_model, make_loss, reduction)


def check_equal(
    extension: str,
    make_model: Callable[[], tuple[nn.Module, Tensor]],
    make_loss: Callable[[str], tuple[nn.Module, Tensor]],
    reduction: str,
    device: str = "cpu",
    tolerance: float = 1e-12,
) -> None:
    """Hold an extension against the peer's, with equal draws in float64."""
    torch.manual_seed(3)
    model, inputs = make_model()
    loss, targets = make_loss(reduction)
    model, inputs = model.double().to(device), inputs.double().to(device)
    targets = (targets.double() if targets.is_floating_point() else targets).to(device)
    theirs, their_loss = peer.extend(copy.deepcopy(model)), peer.extend(copy.deepcopy(loss))
    ours, our_loss = extend(model), extend(loss)

    torch.manual_seed(4)
    with backpack(EXTENSIONS[extension](extensions)):
        our_loss(ours(inputs), targets).backward()
    torch.manual_seed(4)
    with peer.backpack(EXTENSIONS[extension](peer_extensions)), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the peer's hooks on inputs without gradients
        their_loss(theirs(inputs), targets).backward()

    # The peer draws its normal variates with a deviation rounded to float32.
    drawn = "mc" in extension or "kfac" in extension
    rounded = make_loss is squared_error and drawn
    field = extension.split()[0]
    for p, q in zip(ours.parameters(), theirs.parameters(), strict=True):
        pair = getattr(p, field), getattr(q, field)
        factors = zip(*pair, strict=True) if isinstance(pair[0], list) else [pair]
        for found, expected in factors:
            assert found.shape == expected.shape
            error = float((found - expected).abs().max() / expected.abs().max())
            assert error < (1e-7 if rounded else tolerance)


@pytest.mark.parametrize("field", PRODUCTS)
@pytest.mark.parametrize("make_loss", [cross_entropy, squared_error])
@pytest.mark.parametrize("make_model", [seed_cnn, mlp])
def test_products_equal_to_rounding(
    field: str,
    make_model: Callable[[], tuple[nn.Module, Tensor]],
    make_loss: Callable[[str], tuple[nn.Module, Tensor]],
) -> None:
    torch.manual_seed(3)
    model, inputs = make_model()
    loss, targets = make_loss("mean")
    model, inputs = model.double(), inputs.double()
    targets = targets.double() if targets.is_floating_point() else targets
    theirs, their_loss = peer.extend(copy.deepcopy(model)), peer.extend(copy.deepcopy(loss))
    ours, our_loss = extend(model), extend(loss)
    with backpack(PRODUCTS[field](extensions)):
        our_loss(ours(inputs), targets).backward()
    with peer.backpack(PRODUCTS[field](peer_extensions)), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        their_loss(theirs(inputs), targets).backward()
        for p, q in zip(ours.parameters(), theirs.parameters(), strict=True):
            vectors = torch.randn(2, *p.shape, dtype=p.dtype)
            found, expected = getattr(p, field)(vectors), getattr(q, field)(vectors)
            assert float((found - expected).abs().max() / expected.abs().max()) < 1e-11


def test_the_seeds_script_runs_with_other_imports() -> None:
    """Forward outside the block, loss and step inside it, as the peer's example has it."""
    model, inputs = seed_cnn()
    loss, targets = cross_entropy("mean")
    extend(model)
    extend(loss)
    output = model(inputs)
    with backpack(extensions.DiagGGNMC()):
        value = loss(output, targets)
        value.backward()
        before = [p.detach().clone() for p in model.parameters()]
        for p in model.parameters():
            p.data.add_(p.grad / (p.diag_ggn_mc + 1.0), alpha=-0.1)
    assert all(not torch.equal(p, q) for p, q in zip(model.parameters(), before, strict=True))


def test_a_loss_computed_before_the_block_counts_too() -> None:
    model, inputs = mlp()
    loss, targets = cross_entropy("mean")
    value = extend(loss)(extend(model)(inputs), targets)
    with backpack(extensions.DiagGGNExact()):
        value.backward()
    assert all(p.diag_ggn_exact.shape == p.shape for p in model.parameters())
