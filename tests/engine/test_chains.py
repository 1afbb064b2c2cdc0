"""KFRA, HBP and PCHMP: against BackPACK, and against dense matrices sample by sample."""

import copy
import warnings

import backpack as peer
import backpack.extensions as peer_extensions
import pytest
import torch
from torch import Tensor, nn

from curvserve.engine import backpack, extend
from curvserve.engine.errors import NotAChainError, ReplayError, UncoveredParameterError
from curvserve.engine.extensions import GGNMP, HBP, KFLR, KFRA, PCHMP
from curvserve.engine.hbp_options import (
    BackpropStrategy,
    Curvature,
    ExpectationApproximation,
    LossHessianStrategy,
)
from tests.engine.test_quantities import run
from tests.engine.zoo import Case, classes, make

N = 3


def mlp() -> tuple[nn.Module, Tensor]:
    model = nn.Sequential(
        nn.Linear(5, 6), nn.Sigmoid(), nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 4), nn.ReLU(),
        nn.Linear(4, 3),
    )  # fmt: skip
    return model, torch.randn(N, 5)


def cnn() -> tuple[nn.Module, Tensor]:
    model = nn.Sequential(
        nn.Conv2d(2, 3, 2, padding=1), nn.Sigmoid(), nn.MaxPool2d(2), nn.Conv2d(3, 2, 2),
        nn.ReLU(), nn.AvgPool2d(1), nn.Flatten(), nn.Linear(2, 3),
    )  # fmt: skip
    return model, torch.randn(N, 2, 3, 3)


def decoder() -> tuple[nn.Module, Tensor]:
    model = nn.Sequential(
        nn.ConvTranspose2d(2, 3, 2, stride=2), nn.ReLU(), nn.Flatten(),
        nn.Linear(48, 3),
    )  # fmt: skip
    return model, torch.randn(N, 2, 2, 2)


def targets(kind: type[nn.Module]) -> Tensor:
    return classes(N, 3) if kind is nn.CrossEntropyLoss else torch.randn(N, 3).double()


AVERAGED = [(c, LossHessianStrategy.SUM, BackpropStrategy.BATCH_AVERAGE) for c in Curvature.CHOICES]
ROOTS = [(Curvature.GGN, LossHessianStrategy.EXACT, BackpropStrategy.SQRT)]
BOTEV = ExpectationApproximation.BOTEV_MARTENS
EXTENSIONS = {
    "kfra": lambda e: e.KFRA(),
    **{
        f"hbp {options[0]} {options[2]}": lambda e, o=options: e.HBP(*o, BOTEV)
        for options in AVERAGED + ROOTS
    },
}


# The peer's second derivatives of modules are for outputs [N, D] only.
FLAT = [e for e in EXTENSIONS if "hessian" in e or "pch" in e]
PAIRS = [(e, mlp) for e in EXTENSIONS] + [
    (e, model) for e in EXTENSIONS if e not in FLAT for model in (cnn, decoder)
]


@pytest.mark.parametrize("loss_kind", [nn.CrossEntropyLoss, nn.MSELoss])
@pytest.mark.parametrize(("extension", "make_model"), PAIRS)
def test_equal_to_the_peer(extension: str, make_model: object, loss_kind: type[nn.Module]) -> None:
    torch.manual_seed(1)
    model, x = make_model()
    model, x, y = model.double(), x.double(), targets(loss_kind)
    theirs, their_loss = peer.extend(copy.deepcopy(model)), peer.extend(loss_kind())
    extend(model)
    loss = extend(loss_kind())
    from curvserve.engine import extensions

    with backpack(EXTENSIONS[extension](extensions)):
        loss(model(x), y).backward()
    torch.set_default_dtype(torch.float64)  # the peer makes tensors of the default type
    with peer.backpack(EXTENSIONS[extension](peer_extensions)), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            their_loss(theirs(x), y).backward()
        finally:
            torch.set_default_dtype(torch.float32)
    field = extension.split()[0]
    for p, q in zip(model.parameters(), theirs.parameters(), strict=True):
        for f, e in zip(getattr(p, field), getattr(q, field), strict=True):
            assert f.shape == e.shape
            assert float((f - e).abs().max()) < 1e-10 * float(e.abs().max())


def test_the_root_strategy_is_kflr_on_any_architecture() -> None:
    case = make("tokens_flattened_inside")
    case.model.norm.requires_grad_(False)
    options = Curvature.GGN, LossHessianStrategy.EXACT, BackpropStrategy.SQRT, BOTEV
    run(case, KFLR(), HBP(*options))
    for p in case.model.body.parameters():
        for f, e in zip(p.hbp, p.kflr, strict=True):
            assert torch.equal(f, e)


def test_the_average_by_dense_jacobians() -> None:
    """On a chain with modules that the peer does not know."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Linear(4, 5), nn.GELU(), nn.LayerNorm(5, elementwise_affine=False), nn.Linear(5, 3)
    ).double()
    case = Case(model, torch.randn(N, 4).double(), classes(N, 3), nn.CrossEntropyLoss())
    run(case, KFRA())
    hidden = model[0](case.inputs).detach()
    matrix = torch.zeros(3, 3).double()
    for p in model(case.inputs).detach().softmax(1):
        matrix += (p.diag() - torch.outer(p, p)) / N
    torch.testing.assert_close(model[3].bias.kfra[0], matrix, rtol=1e-12, atol=1e-14)
    weight = model[3].weight.detach()
    matrix = weight.T @ matrix @ weight
    for module, inputs in ((model[2], model[1](hidden)), (model[1], hidden)):
        jacobians = [torch.autograd.functional.jacobian(module, h) for h in inputs]
        matrix = sum(j.T @ matrix @ j for j in jacobians) / N
    torch.testing.assert_close(model[0].bias.kfra[0], matrix, rtol=1e-11, atol=1e-14)


@pytest.mark.parametrize("modify", ["clip", "abs"])
def test_products_by_dense_matrices_of_each_sample(modify: str) -> None:
    """Not against the peer: it multiplies the second derivatives by the gradient twice."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 4), nn.Sigmoid(), nn.Linear(4, 3)
    ).double()
    case = Case(model, torch.randn(N, 4).double(), classes(N, 3), nn.CrossEntropyLoss())
    run(case, PCHMP(modify=modify))
    sizes = {index: len(layer.bias) for index, layer in linears(model)}
    expected = {index: torch.zeros(size, size).double() for index, size in sizes.items()}
    for x, y in zip(case.inputs, case.targets, strict=True):
        values = [x]
        for module in model:
            values.append(module(values[-1]).detach())
        f = values[-1].clone().requires_grad_()
        (g,) = torch.autograd.grad(nn.functional.cross_entropy(f, y) / N, f)
        p = f.detach().softmax(0)
        matrix = (p.diag() - torch.outer(p, p)) / N
        for index in range(len(model) - 1, -1, -1):
            module, value = model[index], values[index]
            if isinstance(module, nn.Linear):
                expected[index] += matrix
            jacobian = torch.autograd.functional.jacobian(module, value)
            own = torch.autograd.functional.hessian(lambda v: (g * module(v)).sum(), value)  # noqa: B023  # called before the next
            diagonal = own.diagonal().clamp(min=0) if modify == "clip" else own.diagonal().abs()
            matrix, g = jacobian.T @ matrix @ jacobian + diagonal.diag(), jacobian.T @ g
    for index, layer in linears(model):
        found = layer.bias.pchmp(torch.eye(len(layer.bias)).double())
        torch.testing.assert_close(found, expected[index], rtol=1e-10, atol=1e-14)


def linears(model: nn.Sequential) -> list[tuple[int, nn.Linear]]:
    return [(i, m) for i, m in enumerate(model) if isinstance(m, nn.Linear)]


def test_the_mean_inputs_of_chen() -> None:
    torch.manual_seed(0)
    model, x = mlp()
    case = Case(model.double(), x.double(), classes(N, 3), nn.CrossEntropyLoss())
    options = Curvature.GGN, LossHessianStrategy.SUM, BackpropStrategy.BATCH_AVERAGE
    run(case, HBP(*options, ExpectationApproximation.CHEN))
    mean = case.inputs.mean(0)
    torch.testing.assert_close(model[0].weight.hbp[1], torch.outer(mean, mean))


@pytest.mark.parametrize("modify", ["clip", "abs"])
def test_products_are_symmetric_and_not_negative(modify: str) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Linear(4, 5), nn.SiLU(), nn.Linear(5, 4), nn.Softplus(), nn.Linear(4, 3)
    ).double()
    case = Case(model, torch.randn(N, 4).double(), classes(N, 3), nn.CrossEntropyLoss())
    run(case, PCHMP(modify=modify))
    for p in model.parameters():
        basis = torch.eye(p.numel()).double().reshape(-1, *p.shape)
        block = p.pchmp(basis).flatten(1)
        torch.testing.assert_close(block, block.T, rtol=1e-10, atol=1e-14)
        assert float(torch.linalg.eigvalsh(block).min()) > -1e-12
        assert torch.equal(p.pchmp(basis[0]).flatten(), block[0])


def test_piecewise_linear_chains_have_the_gauss_newton_matrix() -> None:
    case = make("seed_cnn")
    run(case, PCHMP(), GGNMP())
    torch.manual_seed(0)
    for p in case.model.parameters():
        v = torch.randn_like(p)
        torch.testing.assert_close(p.pchmp(v), p.ggnmp(v), rtol=1e-9, atol=1e-13)


@pytest.mark.parametrize(
    "name",
    [
        "residual_with_inplace_relu",
        "same_linear_twice",
        "tied_weights",
        "recurrent",
        "weight_norm",
        "transformer_encoder",
        "bare_parameter_on_a_container",
    ],
)
@pytest.mark.parametrize("extension", [KFRA(), PCHMP()])
def test_what_is_no_chain_is_refused(name: str, extension: object) -> None:
    case = make(name)
    with pytest.raises(NotAChainError, match=f"{type(extension).__name__} is defined on a chain"):
        run(case, extension)
    assert all(not hasattr(p, extension.savefield) for p in case.model.parameters())


def test_dropout_in_training_mode_is_refused() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 50), nn.Dropout(), nn.Linear(50, 3)).double()
    case = Case(model, torch.randn(N, 4).double(), classes(N, 3), nn.CrossEntropyLoss())
    with pytest.raises(NotAChainError, match="dropout in training mode"):
        run(case, KFRA())


def test_a_norm_with_parameters_has_no_factors() -> None:
    model = nn.Sequential(nn.Linear(4, 5), nn.LayerNorm(5), nn.Linear(5, 3)).double()
    case = Case(model, torch.randn(N, 4).double(), classes(N, 3), nn.CrossEntropyLoss())
    with pytest.raises(UncoveredParameterError, match="of LayerNorm: KFRA has no Kronecker"):
        run(case, KFRA())
    assert all(not hasattr(p, "kfra") for p in model.parameters())


def test_a_module_that_is_not_elementwise_has_no_positive_curvature() -> None:
    model = nn.Sequential(nn.Linear(4, 5), nn.Softmax(1), nn.Linear(5, 3)).double()
    case = Case(model, torch.randn(N, 4).double(), classes(N, 3), nn.CrossEntropyLoss())
    with pytest.raises(NotAChainError, match="Softmax is neither linear nor elementwise"):
        run(case, PCHMP())
    run(case, KFRA())


def test_products_after_a_step_are_refused() -> None:
    case = make("mlp")
    run(case, PCHMP())
    weight = case.model[0].weight
    with torch.no_grad():
        weight.add_(1)
    with pytest.raises(ReplayError, match="parameters of Sequential have changed"):
        weight.pchmp(weight)


@pytest.mark.parametrize(
    ("options", "match"),
    [
        (("fisher", "exact", "sqrt", BOTEV), "'fisher' is no Curvature"),
        (("ggn", "sum", "sqrt", BOTEV), "'sqrt' goes with"),
        (("ggn", "exact", "average", BOTEV), "'average' with 'sum'"),
        (("hessian", "exact", "sqrt", BOTEV), "carries the Gauss-Newton matrix only"),
        (("ggn", "exact", "sqrt", ExpectationApproximation.CHEN), "'average' only"),
    ],
)
def test_options_that_have_no_meaning(options: tuple[str, ...], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        HBP(*options)
    with pytest.raises(ValueError, match="modify must be"):
        PCHMP(modify="zero")


def test_products_of_an_embedding() -> None:
    """Its input are indices, of which there is no derivative."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Embedding(5, 3), nn.Flatten(), nn.Linear(6, 3)).double()
    case = Case(model, torch.randint(5, (N, 2)), classes(N, 3), nn.CrossEntropyLoss())
    run(case, PCHMP(), GGNMP())
    for p in model.parameters():  # a piecewise linear model: both are the Gauss-Newton matrix
        torch.testing.assert_close(p.pchmp(p), p.ggnmp(p), rtol=1e-10, atol=1e-14)
