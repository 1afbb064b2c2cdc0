"""Every loss: its curvature against brute force, its draws against the peer, what it refuses."""

import copy
import warnings
from collections.abc import Callable

import backpack as peer
import backpack.extensions as peer_extensions
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.distributions import (
    Bernoulli,
    Categorical,
    Independent,
    Laplace,
    MultivariateNormal,
    Normal,
)
from torch.distributions import Poisson as PoissonDistribution

from curvserve.engine import backpack, evaluate, extend
from curvserve.engine.errors import UnsupportedLossError
from curvserve.engine.extensions import BatchGrad, DiagGGNExact, DiagGGNMC, DiagHessian
from curvserve.engine.losses import RULES, Convex, Likelihood
from curvserve.engine.losses.cross_entropy import CrossEntropy
from tests.engine import reference
from tests.engine.test_quantities import collected, largest_error, run
from tests.engine.zoo import Case

N, C = 5, 3
Loss = tuple[nn.Module, Callable[[], Tensor]]


def numbers(*extra: int) -> Callable[[], Tensor]:
    return lambda: torch.randn(N, *(extra or (C,)))


def bits() -> Tensor:
    return torch.randint(2, (N, C)).float()


def counts() -> Tensor:
    return torch.randint(1, 5, (N, C)).float()


def labels() -> Tensor:
    return torch.randint(C, (N,))


class LogCosh(nn.modules.loss._Loss):
    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        value = (input - target).cosh().log().sum()
        return value / len(input) if self.reduction == "mean" else value


# Each loss is its own true Hessian here, so that brute force can tell.
LOSSES: dict[str, Callable[[str], Loss]] = {
    "squared": lambda r: (nn.MSELoss(reduction=r), numbers()),
    "binary": lambda r: (nn.BCEWithLogitsLoss(reduction=r), bits),
    "binary soft": lambda r: (nn.BCEWithLogitsLoss(reduction=r), lambda: torch.rand(N, C)),
    "binary weighted": lambda r: (
        nn.BCEWithLogitsLoss(torch.rand(C) + 0.5, reduction=r, pos_weight=torch.rand(C) + 1), bits
    ),
    "poisson": lambda r: (nn.PoissonNLLLoss(reduction=r), counts),
    "poisson full": lambda r: (nn.PoissonNLLLoss(full=True, reduction=r), counts),
    "huber": lambda r: (nn.HuberLoss(reduction=r, delta=0.7), numbers()),
    "smooth": lambda r: (nn.SmoothL1Loss(reduction=r, beta=0.7), numbers()),
    "smooth without": lambda r: (nn.SmoothL1Loss(reduction=r, beta=0.0), numbers()),
    "absolute": lambda r: (nn.L1Loss(reduction=r), numbers()),
    "margin": lambda r: (nn.SoftMarginLoss(reduction=r), lambda: 2 * bits() - 1),
    "labels": lambda r: (nn.MultiLabelSoftMarginLoss(reduction=r), bits),
    "own": lambda r: (LogCosh(reduction=r), numbers()),
    "convex": lambda r: (
        Convex(lambda f, y: f.logsumexp(1) + (f - y).pow(4).sum(1), reduction=r), numbers()
    ),
    "normal": lambda r: (Likelihood(lambda f: Normal(f, 0.3), reduction=r), numbers()),
    "categorical": lambda r: (Likelihood(lambda f: Categorical(logits=f), reduction=r), labels),
    "bernoulli": lambda r: (Likelihood(lambda f: Bernoulli(logits=f), reduction=r), bits),
    "independent": lambda r: (
        Likelihood(lambda f: Independent(Normal(f, 2.0), 1), reduction=r), numbers()
    ),
    "correlated": lambda r: (
        Likelihood(
            lambda f: MultivariateNormal(f, torch.eye(C, dtype=f.dtype) + 0.5), reduction=r
        ),
        numbers(),
    ),
    "rates": lambda r: (
        Likelihood(lambda f: PoissonDistribution(f.exp()), reduction=r), counts
    ),
}  # fmt: skip


def make(name: str, reduction: str = "mean", seed: int = 0) -> Case:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        loss, targets = LOSSES[name](reduction)
        model = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, C))
        y = targets()
        x = torch.randn(N, 4)
    y = y.double() if y.is_floating_point() else y
    return Case(model.double(), x.double(), y, loss.double())


@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("name", LOSSES)
def test_curvature_and_shares_equal_brute_force(name: str, reduction: str) -> None:
    case = make(name, reduction)
    run(case, DiagGGNExact(), BatchGrad(), DiagHessian())
    arguments = case.model, case.loss, case.inputs, case.targets
    rows = reference.batch_grad(*arguments)
    assert largest_error(collected(case, "grad_batch"), rows) < 1e-11
    expected = reference.diag_ggn(*arguments)
    found = collected(case, "diag_ggn_exact")
    if name in ("absolute", "smooth without"):
        assert all(not v.any() for v in found.values())
    else:
        assert largest_error(found, expected) < 1e-10
    blocks = reference.hessian_blocks(*arguments)
    diagonal = {k: v.flatten() for k, v in collected(case, "diag_h").items()}
    largest = max(float(b.abs().max()) for b in blocks.values())
    for key, block in blocks.items():
        assert float((diagonal[key] - block.diagonal()).abs().max()) < 1e-10 * largest


@pytest.mark.parametrize("name", [n for n in LOSSES if n not in ("absolute", "smooth without")])
def test_the_mean_of_many_draws_tends_to_the_exact_diagonal(name: str) -> None:
    case = make(name)
    exact = reference.diag_ggn(case.model, case.loss, case.inputs, case.targets)

    def error(draws: int) -> float:
        torch.manual_seed(0)
        run(case, DiagGGNMC(draws))
        found = collected(case, "diag_ggn_mc")
        difference = sum(float((found[k] - v).square().sum()) for k, v in exact.items())
        return (difference / sum(float(v.square().sum()) for v in exact.values())) ** 0.5

    many = error(2000)
    assert many < 0.1
    assert many < max(error(2) / 2, 1e-12)  # one element with curvature has no chance


@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("name", LOSSES)
def test_chunks_change_nothing(name: str, reduction: str) -> None:
    case = make(name, reduction)
    fields = ("grad", "diag_ggn_exact", "diag_ggn_mc", "grad_batch")
    arguments = (case.model, case.loss, case.inputs, case.targets, fields)
    whole = evaluate(*arguments, seed=1, mc_samples=2)
    parts = evaluate(*arguments, seed=1, mc_samples=2, chunk=2)
    torch.testing.assert_close(parts.loss, whole.loss, rtol=1e-12, atol=0)
    for field in fields:
        largest = max(float(v.abs().max()) for v in whole.quantities[field].values())
        for key, value in whole.quantities[field].items():
            error = float((parts.quantities[field][key] - value).abs().max())
            assert error <= 1e-12 * max(largest, 1e-300)


@settings(max_examples=30, deadline=None, derandomize=True)
@given(st.sampled_from(sorted(LOSSES)), st.integers(0, 2**32), st.sampled_from(["mean", "sum"]))
def test_any_output_and_target(name: str, seed: int, reduction: str) -> None:
    case = make(name, reduction, seed)
    run(case, DiagGGNExact())
    expected = reference.diag_ggn(case.model, case.loss, case.inputs, case.targets)
    largest = max(1e-300, max(float(v.abs().max()) for v in expected.values()))
    for key, value in collected(case, "diag_ggn_exact").items():
        assert float((value - expected[key]).abs().max()) <= 1e-9 * largest


@pytest.mark.parametrize("shape", [(), (1,), (2, 3)])
@pytest.mark.parametrize("kind", [nn.BCEWithLogitsLoss, nn.HuberLoss, nn.PoissonNLLLoss])
def test_outputs_of_any_shape(kind: type[nn.Module], shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    width = int(torch.Size(shape).numel())
    last = nn.Flatten(0) if shape == () else nn.Unflatten(1, shape)
    model = nn.Sequential(nn.Linear(4, width), nn.Tanh(), last).double()
    case = Case(model, torch.randn(N, 4).double(), torch.rand(N, *shape).double(), kind())
    run(case, DiagGGNExact(), BatchGrad())
    arguments = case.model, case.loss, case.inputs, case.targets
    expected = reference.diag_ggn(*arguments)
    assert largest_error(collected(case, "diag_ggn_exact"), expected) < 1e-12
    assert largest_error(collected(case, "grad_batch"), reference.batch_grad(*arguments)) < 1e-12


@pytest.mark.parametrize("extension", ["DiagGGNMC", "DiagGGNExact"])
@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_binary_draws_are_the_peers(reduction: str, extension: str) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 1)).double()
    x, y = torch.randn(N, 4).double(), torch.randint(2, (N, 1)).double()
    loss = nn.BCEWithLogitsLoss(reduction=reduction)
    theirs, their_loss = peer.extend(copy.deepcopy(model)), peer.extend(copy.deepcopy(loss))
    extend(model), extend(loss)
    kinds = {"DiagGGNMC": DiagGGNMC, "DiagGGNExact": DiagGGNExact}
    torch.manual_seed(1)
    with backpack(kinds[extension]()):
        loss(model(x), y).backward()
    torch.manual_seed(1)
    with peer.backpack(getattr(peer_extensions, extension)()), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        their_loss(theirs(x), y).backward()
    field = kinds[extension].savefield
    for p, q in zip(model.parameters(), theirs.parameters(), strict=True):
        error = (getattr(p, field) - getattr(q, field)).abs().max() / getattr(q, field).abs().max()
        assert float(error) < 1e-12


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_log_probabilities_have_the_curvature_of_cross_entropy(reduction: str) -> None:
    torch.manual_seed(0)
    body = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, C)).double()
    x, y = torch.randn(N, 4).double(), torch.tensor([0, 2, 1, 1, 0])
    options = {"weight": (torch.rand(C) + 0.5).double(), "ignore_index": 1, "reduction": reduction}
    fields = ("grad", "grad_batch", "diag_ggn_exact", "diag_h")
    plain = evaluate(body, nn.CrossEntropyLoss(**options), x, y, fields)
    model = nn.Sequential(body, nn.LogSoftmax(1))
    logs = evaluate(model, nn.NLLLoss(**options), x, y, fields)
    for field in fields:
        expected = {f"0.{k}": v for k, v in plain.quantities[field].items()}
        assert largest_error(logs.quantities[field], expected) < 1e-11


@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("form", ["full", "column", "line", "number"])
def test_gaussian_likelihood_with_a_given_variance(form: str, reduction: str) -> None:
    torch.manual_seed(0)
    model = extend(nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, C)).double())
    x, y = torch.randn(N, 4).double(), torch.randn(N, C).double()
    shapes = {"full": (N, C), "column": (N, 1), "line": (N,)}
    variance = 0.4 if form == "number" else torch.rand(shapes[form]).double() + 0.1
    loss = extend(nn.GaussianNLLLoss(reduction=reduction))
    with backpack(DiagGGNExact(), BatchGrad()):
        loss(model(x), y, variance).backward()
    found = {k: p.diag_ggn_exact for k, p in model.named_parameters()}

    def same(f: Tensor, target: Tensor) -> Tensor:
        return loss.forward(f, target, variance)

    expected = reference.diag_ggn(model, same, x, y)
    assert largest_error(found, expected) < 1e-12
    for p in model.parameters():
        torch.testing.assert_close(p.grad_batch.sum(0), p.grad, rtol=1e-11, atol=1e-14)


def test_a_learned_variance_by_a_likelihood() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 2)).double()
    x, y = torch.randn(N, 4).double(), torch.randn(N).double()
    loss = Likelihood(lambda f: Normal(f[:, 0], f[:, 1].exp()))
    outputs = model(x)
    parameters = dict(model.named_parameters())
    rows = reference.jacobian(outputs, list(parameters.values()))
    # The Fisher information of mean and log-deviation is diag(1 / deviation^2, 2).
    fisher = torch.stack([(-2 * outputs[:, 1]).exp(), torch.full((N,), 2.0).double()], 1) / N
    expected = {
        name: (fisher.detach().reshape(-1, *[1] * p.dim()) * row.square()).sum(0)
        for (name, p), row in zip(parameters.items(), rows, strict=True)
    }
    found = evaluate(model, loss, x, y, ["diag_ggn_mc"], seed=0, mc_samples=4000)
    assert largest_error(found.quantities["diag_ggn_mc"], expected) < 0.15
    with pytest.raises(UnsupportedLossError, match="depends on the target; use the Monte-Carlo"):
        evaluate(model, loss, x, y, ["diag_ggn_exact"])


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_a_rate_that_is_no_logarithm(reduction: str) -> None:
    case = make("poisson", reduction)
    case.model.append(nn.Softplus())
    case.loss = nn.PoissonNLLLoss(log_input=False, reduction=reduction)
    run(case, DiagGGNExact())
    expected = reference.diag_ggn(case.model, case.loss, case.inputs, case.targets)
    assert largest_error(collected(case, "diag_ggn_exact"), expected) < 1e-12


def test_arguments_by_name() -> None:
    case = make("squared")
    extend(case.model), extend(case.loss)
    with backpack(DiagGGNExact()):
        case.loss(target=case.targets, input=case.model(case.inputs)).backward()
    expected = reference.diag_ggn(case.model, case.loss, case.inputs, case.targets)
    assert largest_error(collected(case, "diag_ggn_exact"), expected) < 1e-12


def test_a_loss_inside_a_loss_counts_once() -> None:
    class Half(nn.modules.loss._Loss):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.MSELoss()

        def forward(self, input: Tensor, target: Tensor) -> Tensor:
            return self.inner(input, target) / 2

    case = make("squared")
    case.loss = Half()
    run(case, DiagGGNExact())
    expected = reference.diag_ggn(case.model, case.loss, case.inputs, case.targets)
    assert largest_error(collected(case, "diag_ggn_exact"), expected) < 1e-12


class TestRefusals:
    def refuse(self, loss: nn.Module, target: Tensor, match: str, extension: object = None) -> None:
        model = extend(nn.Linear(4, C).double())
        x = torch.randn(N, 4).double()
        chosen = extension or DiagGGNExact()
        with pytest.raises(UnsupportedLossError, match=match), backpack(chosen):
            extend(loss)(model(x), target).backward()
        assert not hasattr(model.weight, chosen.savefield)

    def test_log_probabilities_that_are_none(self) -> None:
        self.refuse(nn.NLLLoss(), labels(), r"end the model with nn.LogSoftmax\(dim=1\)")

    def test_an_element_where_there_is_a_kink(self) -> None:
        model, x = extend(nn.Linear(4, C).double()), torch.randn(N, 4).double()
        loss = extend(nn.L1Loss())
        y = model(x).detach().clone()
        with pytest.raises(UnsupportedLossError, match="use HuberLoss"), backpack(DiagGGNExact()):
            loss(model(x), y).backward()

    def test_a_loss_that_is_not_convex(self) -> None:
        self.refuse(
            Convex(lambda f, y: (f - y).sin().sum(1)), numbers()(), "not convex in the output: at"
        )

    def test_a_loss_that_mixes_samples(self) -> None:
        self.refuse(
            Convex(lambda f, y: (f.sum(0) - y).square().sum(1)), numbers()(), "not a sum over the"
        )

    @pytest.mark.parametrize(
        "loss", [nn.TripletMarginLoss(), nn.CosineEmbeddingLoss(), nn.CTCLoss(), nn.KLDivLoss()]
    )
    def test_losses_of_another_kind(self, loss: nn.Module) -> None:
        with pytest.raises(UnsupportedLossError, match=f"{type(loss).__name__} has no curvature"):
            extend(loss)

    def test_a_variance_that_is_learned(self) -> None:
        model, x = extend(nn.Linear(4, 2 * C).double()), torch.randn(N, 4).double()
        loss = extend(nn.GaussianNLLLoss())
        output = model(x)
        with (
            pytest.raises(UnsupportedLossError, match="use curvserve.engine.losses.Likelihood"),
            backpack(DiagGGNMC()),
        ):
            loss(output[:, :C], numbers()().double(), output[:, C:].exp()).backward()
        assert not hasattr(model.weight, "diag_ggn_mc")

    def test_a_density_with_a_kink(self) -> None:
        """Its Hessian is zero wherever there is one, and its Fisher information is not."""
        loss = Likelihood(lambda f: Independent(Laplace(f, 1.0), 1))
        self.refuse(loss, numbers()().double(), "not its Fisher information")
        model, x = nn.Linear(4, C).double(), torch.randn(N, 4).double()
        y = numbers()().double()
        found = evaluate(model, loss, x, y, ["diag_ggn_mc"], seed=0, mc_samples=3)
        expected = torch.full((C,), 1.0).double()  # 1 / scale^2, whatever is drawn
        torch.testing.assert_close(found.quantities["diag_ggn_mc"]["bias"], expected)

    def test_a_distribution_without_the_samples_axis(self) -> None:
        loss = Likelihood(lambda f: Independent(Normal(f, 1.0), 2))
        self.refuse(loss, numbers()(), r"batch shape \(\)")

    @pytest.mark.parametrize("kind", [nn.BCEWithLogitsLoss, nn.HuberLoss])
    def test_targets_of_another_shape(self, kind: type[nn.Module]) -> None:
        model, x = extend(nn.Linear(4, 1).double()), torch.rand(N, 4).double()
        loss = extend(kind())
        with pytest.raises((UnsupportedLossError, ValueError)), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with backpack(DiagGGNExact()):
                loss(model(x), torch.rand(N).double()).backward()
        assert not hasattr(model.weight, "diag_ggn_exact")


def test_the_registry_lists_what_is_tested() -> None:
    tested = {type(LOSSES[name]("mean")[0]) for name in LOSSES}
    elsewhere = {nn.CrossEntropyLoss, nn.NLLLoss, nn.GaussianNLLLoss}
    assert set(RULES) <= tested | elsewhere


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    "outputs",
    [
        torch.randn(4, 5),
        torch.randn(3, 7, 2, 2),
        torch.zeros(2, 1),
        torch.tensor([[200.0, 0.0, -300.0], [0.0, -500.0, -500.0], [-500.0, 0.0, 0.0]]),
    ],
    ids=["plain", "with positions", "one class", "saturated"],
)
def test_the_factor_with_fewest_columns(outputs: Tensor, dtype: torch.dtype) -> None:
    classes, rule = outputs.shape[1], CrossEntropy()
    loss = nn.CrossEntropyLoss(torch.linspace(0.5, 2, classes).to(dtype), label_smoothing=0.1)
    targets = torch.zeros(len(outputs), *outputs.shape[2:], dtype=torch.long)
    thin, exact = (
        factor(loss, outputs.to(dtype), targets).movedim(2, -1).movedim(0, -1)
        for factor in (rule.thin, rule.exact)
    )
    assert thin.shape[-1] == max(1, classes - 1) < exact.shape[-1] + (classes == 1)
    torch.testing.assert_close(thin @ thin.mT, exact @ exact.mT)
