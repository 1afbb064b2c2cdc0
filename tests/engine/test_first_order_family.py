"""Quantities that are short functions of rows, on every structure, against brute force."""

import pytest
import torch
from torch import Tensor, nn

from curvserve.engine import backpack, evaluate, extend
from curvserve.engine.errors import SeveralLossesError
from curvserve.engine.extensions import (
    BatchDiagGGNExact,
    BatchDiagGGNMC,
    BatchGrad,
    BatchL2Grad,
    DiagEmpiricalFisher,
    DiagGGNExact,
    DiagGGNMC,
    DiagHessian,
    HutchinsonDiagonal,
    SqrtGGNExact,
    SqrtGGNMC,
    SumGradSquared,
    Variance,
)
from tests.engine import reference
from tests.engine.test_quantities import collected, largest_error, run
from tests.engine.zoo import ZOO, Case, make


def rows_of(case: Case) -> dict[str, Tensor]:
    return reference.batch_grad(case.model, case.loss, case.inputs, case.targets, case.samples)


@pytest.mark.parametrize("name", ZOO)
def test_functions_of_the_gradients_rows(name: str) -> None:
    case = make(name)
    run(case, BatchL2Grad(), SumGradSquared(), Variance())
    rows = rows_of(case)
    norms = {k: v.flatten(1).square().sum(1) for k, v in rows.items()}
    assert largest_error(collected(case, "batch_l2"), norms) < 1e-12
    squares = {k: v.square().sum(0) for k, v in rows.items()}
    assert largest_error(collected(case, "sum_grad_squared"), squares) < 1e-12
    found = collected(case, "variance")
    for key, value in rows.items():  # relative to the moments that it is the difference of
        error = (found[key] - value.var(0, correction=0)).abs().max()
        assert float(error) <= 1e-12 * max(1e-30, float(value.square().mean(0).max()))


@pytest.mark.parametrize("name", ZOO)
def test_shares_and_roots_of_the_gauss_newton_matrix(name: str) -> None:
    case = make(name)
    run(case, BatchDiagGGNExact(), SqrtGGNExact())
    diagonal = reference.diag_ggn(case.model, case.loss, case.inputs, case.targets)
    shares = collected(case, "diag_ggn_exact_batch")
    assert largest_error({k: v.sum(0) for k, v in shares.items()}, diagonal) < 1e-12
    blocks = reference.ggn_blocks(case.model, case.loss, case.inputs, case.targets)
    roots = {k: v.flatten(0, 1).flatten(1) for k, v in collected(case, "sqrt_ggn_exact").items()}
    assert largest_error({k: v.T @ v for k, v in roots.items()}, blocks) < 1e-12


@pytest.mark.parametrize("name", ["mlp", "seed_cnn", "mlp_squared_error", "language_model"])
def test_each_samples_share_is_that_of_the_sample_alone(name: str) -> None:
    case = make(name)
    run(case, BatchDiagGGNExact())
    samples = len(case.inputs)
    lines = len(case.targets) // samples
    found = collected(case, "diag_ggn_exact_batch")
    for n in range(samples):
        alone = reference.diag_ggn(
            case.model, case.loss, case.inputs[n : n + 1], case.targets[n * lines : (n + 1) * lines]
        )
        scaled = {k: v / samples for k, v in alone.items()}
        assert largest_error({k: v[n] for k, v in found.items()}, scaled) < 1e-12


@pytest.mark.parametrize("name", ["mlp", "seed_cnn", "language_model"])
def test_the_same_draws_make_the_same_sampled_matrix(name: str) -> None:
    def draw(*extensions: object) -> Case:
        case = make(name)
        torch.manual_seed(4)
        run(case, *extensions)
        return case

    diagonal = collected(draw(DiagGGNMC(3)), "diag_ggn_mc")
    shares = collected(draw(BatchDiagGGNMC(3)), "diag_ggn_mc_batch")
    roots = collected(draw(SqrtGGNMC(3)), "sqrt_ggn_mc")
    assert all(v.shape[0] == 3 for v in roots.values())
    assert largest_error({k: v.sum(0) for k, v in shares.items()}, diagonal) < 1e-12
    assert largest_error({k: v.square().sum((0, 1)) for k, v in roots.items()}, diagonal) < 1e-12


@pytest.mark.parametrize("name", ["mlp", "mlp_sum", "seed_cnn"])
def test_the_empirical_fisher_has_the_scale_of_the_loss(name: str) -> None:
    case = make(name)
    run(case, DiagEmpiricalFisher())
    mean = case.loss.reduction == "mean"
    factor = len(case.inputs) if mean else 1
    expected = {k: factor * v.square().sum(0) for k, v in rows_of(case).items()}
    assert largest_error(collected(case, "diag_empirical_fisher"), expected) < 1e-12


def test_subsampling_keeps_the_scale_and_the_order() -> None:
    case = make("seed_cnn")
    run(case, BatchGrad(), SqrtGGNExact())
    rows, roots = collected(case, "grad_batch"), collected(case, "sqrt_ggn_exact")
    torch.manual_seed(0)
    run(case, SqrtGGNMC(2))
    sampled = collected(case, "sqrt_ggn_mc")
    torch.manual_seed(0)
    run(case, SqrtGGNMC(2, subsampling=[3, 1]), BatchGrad([3, 1]), SqrtGGNExact([3, 1]))
    for key, value in collected(case, "grad_batch").items():
        torch.testing.assert_close(value, rows[key][[3, 1]], rtol=1e-12, atol=1e-15)
    for key, value in collected(case, "sqrt_ggn_exact").items():
        torch.testing.assert_close(value, roots[key][:, [3, 1]], rtol=1e-12, atol=1e-15)
    for key, value in collected(case, "sqrt_ggn_mc").items():
        torch.testing.assert_close(value, sampled[key][:, [3, 1]], rtol=1e-12, atol=1e-15)


FIELDS = (
    "batch_l2", "sum_grad_squared", "variance", "diag_ggn_exact_batch", "sqrt_ggn_exact",
    "sqrt_ggn_mc", "diag_ggn_mc_batch", "diag_empirical_fisher",
)  # fmt: skip


@pytest.mark.parametrize("name", ["seed_cnn", "language_model", "weighted_classes", "segmentation"])
def test_parts_of_a_batch_make_the_whole(name: str) -> None:
    case = make(name)
    arguments = (case.model, case.loss, case.inputs, case.targets, FIELDS)
    whole = evaluate(*arguments, seed=5, mc_samples=2)
    parts = evaluate(*arguments, seed=5, mc_samples=2, chunk=2)
    for field in FIELDS:
        assert largest_error(parts.quantities[field], whole.quantities[field]) < 1e-12


class TwoHeads(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.trunk = nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 5), nn.Tanh())
        self.first, self.second = nn.Linear(5, 3), nn.Linear(5, 2)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        h = self.trunk(x)
        return self.first(h), self.second(h)


class TestSumsOfLosses:
    def setup_method(self) -> None:
        torch.manual_seed(0)
        self.model = extend(TwoHeads().double())
        self.x = torch.randn(4, 6).double()
        self.y = torch.tensor([0, 2, 1, 0])
        self.z = torch.randn(4, 2).double()
        self.losses = extend(nn.CrossEntropyLoss()), extend(nn.MSELoss())

    def backward(self, which: tuple[int, ...], *extensions: object) -> dict[str, Tensor]:
        for p in self.model.parameters():
            for extension in extensions:
                p.__dict__.pop(extension.savefield, None)
        outputs, targets = self.model(self.x), (self.y, self.z)
        with backpack(*extensions):
            sum(self.losses[i](outputs[i], targets[i]) for i in which).backward()
        field = extensions[0].savefield
        return {n: getattr(p, field, torch.zeros(())) for n, p in self.model.named_parameters()}

    @pytest.mark.parametrize("order", [(0, 1), (1, 0)])
    @pytest.mark.parametrize("company", [DiagGGNExact(), DiagHessian(), HutchinsonDiagonal()])
    def test_what_one_loss_sends_back_is_no_gradient_of_another(
        self, company: object, order: tuple[int, ...]
    ) -> None:
        """The second loss's factors pass by the layers where the first one's hooks wait."""
        rows = self.backward(order, BatchGrad(), company)
        for name, p in self.model.named_parameters():
            torch.testing.assert_close(rows[name].sum(0), p.grad, rtol=1e-12, atol=1e-14)
            p.grad = None
        alone = [self.backward((i,), BatchGrad()) for i in order]
        assert largest_error(rows, {k: alone[0][k] + alone[1][k] for k in rows}) < 1e-12

    @pytest.mark.parametrize("extension", [BatchGrad(), DiagGGNExact(), BatchDiagGGNExact()])
    def test_two_heads_add_up(self, extension: object) -> None:
        both = self.backward((0, 1), extension)
        first, second = self.backward((0,), extension), self.backward((1,), extension)
        assert largest_error(both, {k: first[k] + second[k] for k in first}) < 1e-12

    def test_squares_are_of_the_sum(self) -> None:
        rows = self.backward((0, 1), BatchGrad())
        squares = self.backward((0, 1), SumGradSquared())
        assert largest_error(squares, {k: v.square().sum(0) for k, v in rows.items()}) < 1e-12

    def test_two_forward_passes_have_no_samples_in_common(self) -> None:
        loss = self.losses[0]
        total = loss(self.model(self.x)[0], self.y) + loss(self.model(self.x)[0], self.y)
        with (
            pytest.raises(SeveralLossesError, match="different forward passes"),
            backpack(BatchGrad(), DiagGGNExact()),
        ):
            total.backward()
        for p in self.model.parameters():
            assert not hasattr(p, "grad_batch") and not hasattr(p, "diag_ggn_exact")

    def test_curvature_of_two_forward_passes_adds_up(self) -> None:
        loss = self.losses[0]
        with backpack(DiagGGNExact()):
            (loss(self.model(self.x)[0], self.y) + loss(self.model(-self.x)[0], self.y)).backward()
        both = self.collect()
        single = []
        for x in (self.x, -self.x):
            with backpack(DiagGGNExact()):
                loss(self.model(x)[0], self.y).backward()
            single.append(self.collect())
        assert largest_error(both, {k: single[0][k] + single[1][k] for k in both}) < 1e-12

    def collect(self) -> dict[str, Tensor]:
        reached = {n: p for n, p in self.model.named_parameters() if "second" not in n}
        return {n: p.diag_ggn_exact for n, p in reached.items()}


def test_a_parameter_that_is_a_number() -> None:
    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.factor = nn.Parameter(torch.tensor(2.0))

        def forward(self, x: Tensor) -> Tensor:
            return x * self.factor

    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 4), Scaled()).double()
    case = Case(model, torch.randn(5, 6).double(), torch.randint(4, (5,)), nn.CrossEntropyLoss())
    run(case, BatchGrad(), BatchL2Grad(), SumGradSquared(), Variance())
    rows = rows_of(case)["1.factor"]
    factor = model[1].factor
    torch.testing.assert_close(factor.grad_batch, rows, rtol=1e-12, atol=0)
    torch.testing.assert_close(factor.batch_l2, rows.square(), rtol=1e-12, atol=0)
    torch.testing.assert_close(factor.sum_grad_squared, rows.square().sum(), rtol=1e-12, atol=0)


def test_an_error_half_way_leaves_nothing_behind() -> None:
    case = make("mlp")
    with pytest.raises(IndexError, match="on a batch of 5"):
        run(case, DiagGGNExact(), BatchGrad(subsampling=[7]))
    assert all(not hasattr(p, "diag_ggn_exact") for p in case.model.parameters())
