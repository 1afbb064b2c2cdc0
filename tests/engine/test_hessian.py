"""Diagonals of the Hessian, and products with it and with the Gauss-Newton matrix."""

from functools import cache

import pytest
import torch
from torch import Tensor, nn
from torch.distributions import Normal

from curvserve.engine import backpack, evaluate, extend
from curvserve.engine.errors import EngineError, ReplayError, UnsupportedLossError
from curvserve.engine.extensions import (
    GGNMP,
    HMP,
    BatchDiagHessian,
    DiagHessian,
    HutchinsonDiagonal,
    HutchinsonTrace,
)
from curvserve.engine.losses import Likelihood
from tests.engine import reference
from tests.engine.test_quantities import collected, largest_error, run
from tests.engine.zoo import ZOO, Case, Wrapped, make

Blocks = dict[str, Tensor]

MORE_OF_A_KIND = {
    "transformer_encoder_in_eval_mode",
    "transformer_encoder_time_first",
    "recurrent_time_first_with_state",
    "one_sample",
}
"""Cases whose products are left to `make conformance`; their diagonals are computed each time."""


def hessians(case: Case) -> Blocks:
    return reference.hessian_blocks(case.model, case.loss, case.inputs, case.targets)


@cache
def hessians_of(name: str) -> Blocks:
    """Those of a case of the zoo, which several tests want; computed by brute force."""
    return hessians(make(name))


def diagonals(case: Case, blocks: Blocks) -> Blocks:
    return {k: blocks[k].diagonal().view_as(p) for k, p in reference.trained(case.model).items()}


def error_of(found: Blocks, expected: Blocks) -> float:
    """Relative to the largest entry of all: many Hessians are zero but for rounding."""
    largest = max(float(value.abs().max()) for value in expected.values())
    return max(float((found[k] - v).abs().max()) for k, v in expected.items()) / largest


@pytest.mark.parametrize("name", ZOO)
def test_the_diagonal_of_the_hessian(name: str) -> None:
    case = make(name)
    run(case, DiagHessian())
    assert error_of(collected(case, "diag_h"), diagonals(case, hessians_of(name))) < 1e-11


@pytest.mark.parametrize(
    "name", ["mlp", "tied_weights", "same_linear_twice", "recurrent", "norms_in_eval_mode"]
)
def test_each_samples_share_of_it(name: str) -> None:
    case = make(name)
    run(case, BatchDiagHessian())
    found = collected(case, "diag_h_batch")
    samples = len(case.inputs)
    for n in range(samples):
        inputs, targets = case.inputs[n : n + 1], case.targets[n : n + 1]
        alone = Case(case.model, inputs, targets, case.loss)
        expected = {k: v / samples for k, v in diagonals(alone, hessians(alone)).items()}
        assert error_of({k: v[n] for k, v in found.items()}, expected) < 1e-11


@pytest.mark.parametrize(
    "name",
    [pytest.param(n, marks=pytest.mark.campaign) if n in MORE_OF_A_KIND else n for n in ZOO],
)
def test_products_with_the_blocks(name: str) -> None:
    case = make(name)
    run(case, GGNMP(), HMP())
    ggn = reference.ggn_blocks(case.model, case.loss, case.inputs, case.targets)
    hessian = hessians_of(name)
    torch.manual_seed(0)
    for field, blocks in (("ggnmp", ggn), ("hmp", hessian)):
        found, expected = {}, {}
        for key, p in reference.trained(case.model).items():
            vectors = torch.randn(2, *p.shape, dtype=p.dtype)
            found[key] = getattr(p, field)(vectors)
            assert torch.equal(getattr(p, field)(vectors[1]), found[key][1])
            expected[key] = (vectors.flatten(1) @ blocks[key]).view_as(vectors)
        assert error_of(found, expected) < 1e-11


class TestProducts:
    def setup_method(self) -> None:
        self.case = make("mlp")
        run(self.case, GGNMP(), HMP())
        self.weight = self.case.model[0].weight

    def test_a_vector_of_another_shape(self) -> None:
        with pytest.raises(ValueError, match=r"shape \(8, 6\) or several, .* got \(6, 8\)"):
            self.weight.ggnmp(self.weight.T)

    def test_parameters_that_have_changed(self) -> None:
        before = self.weight.hmp(self.weight)
        with torch.no_grad():
            self.weight.mul_(2)
        assert torch.isfinite(before).all()
        with pytest.raises(ReplayError, match="parameters of Sequential have changed"):
            self.weight.hmp(self.weight)

    def test_a_model_that_draws_random_numbers(self) -> None:
        model, loss = nn.Sequential(nn.Linear(6, 9), nn.Dropout()), extend(nn.MSELoss())
        with backpack(HMP()):
            loss(extend(model)(torch.randn(4, 6)), torch.randn(4, 9)).backward()
        with pytest.raises(ReplayError, match="draws random numbers"):
            model[0].weight.hmp(model[0].weight)

    def test_an_operation_without_a_second_derivative(self) -> None:
        class Once(torch.autograd.Function):
            @staticmethod
            def forward(ctx: object, x: Tensor) -> Tensor:
                return 2 * x

            @staticmethod
            @torch.autograd.function.once_differentiable
            def backward(ctx: object, gradient: Tensor) -> Tensor:
                return 2 * gradient

        model = Wrapped(lambda m, x: Once.apply(m.body(x)), body=nn.Linear(6, 4))
        loss = extend(nn.MSELoss())
        with backpack(GGNMP(), HMP()):
            loss(extend(model)(torch.randn(3, 6)), torch.randn(3, 4)).backward()
        weight = model.body.weight
        for product in (weight.ggnmp, weight.hmp):
            with pytest.raises(EngineError, match="cannot be differentiated twice"):
                product(weight)

    def test_a_loss_without_an_exact_factor(self) -> None:
        """Refused by the backward pass, not when the product is first called."""
        model = extend(nn.Linear(6, 4))
        loss = extend(Likelihood(lambda f: Normal(f[:, :2], f[:, 2:].exp())))
        with pytest.raises(UnsupportedLossError, match="Monte-Carlo"), backpack(GGNMP()):
            loss(model(torch.randn(3, 6)), torch.randn(3, 2)).backward()
        assert not hasattr(model.weight, "ggnmp")

    def test_something_between_the_model_and_the_loss(self) -> None:
        model, loss = extend(nn.Linear(6, 4)), extend(nn.MSELoss())
        with pytest.raises(EngineError, match="very result"), backpack(GGNMP()):
            loss(model(torch.randn(3, 6)).tanh(), torch.randn(3, 4)).backward()
        assert not hasattr(model.weight, "ggnmp")


@pytest.mark.parametrize("matrix", ["hessian", "ggn"])
@pytest.mark.parametrize(
    "name",
    [
        *("mlp", "tied_weights", "language_model"),
        pytest.param("transformer_encoder", marks=pytest.mark.campaign),
    ],
)
def test_hutchinsons_estimates_tend_to_diagonal_and_trace(name: str, matrix: str) -> None:
    case = make(name)
    blocks = hessians(case) if matrix == "hessian" else reference.ggn_blocks(
        case.model, case.loss, case.inputs, case.targets
    )  # fmt: skip
    expected = diagonals(case, blocks)
    arguments = (case.model, case.loss, case.inputs, case.targets)

    def error(draws: int) -> float:
        extensions = [HutchinsonDiagonal(draws, matrix), HutchinsonTrace(draws, matrix)]
        found = evaluate(*arguments, extensions, seed=0).quantities
        traces = {k: v.sum() for k, v in found["hutchinson_diagonal"].items()}
        assert largest_error(found["hutchinson_trace"], traces) < 1e-9
        off = sum(
            float((v - expected[k]).square().sum()) for k, v in found["hutchinson_diagonal"].items()
        )
        return (off / sum(float(v.square().sum()) for v in expected.values())) ** 0.5

    assert error(200) < error(2) / 4  # falls as 1 / sqrt(draws): by 10 here, up to chance


def test_hutchinsons_signs_are_the_same_for_every_part_of_a_batch() -> None:
    case = make("mlp")
    arguments = (case.model, case.loss, case.inputs, case.targets, ["hutchinson_diagonal"])
    whole = evaluate(*arguments, seed=3).quantities["hutchinson_diagonal"]
    parts = evaluate(*arguments, seed=3, chunk=2).quantities["hutchinson_diagonal"]
    assert largest_error(parts, whole) < 1e-12
