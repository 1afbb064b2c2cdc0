"""Every quantity on every structure equals its definition, computed by brute force in float64."""

import pytest
import torch
from torch import Tensor

from curvserve.engine import backpack, evaluate, extend
from curvserve.engine.extensions import BatchGrad, DiagGGNExact, DiagGGNMC
from tests.engine import reference
from tests.engine.zoo import ZOO, Case, make


def largest_error(found: dict[str, Tensor], expected: dict[str, Tensor]) -> float:
    """The largest difference, relative to the largest entry of each parameter's result.

    Where that is zero but for rounding, relative to a millionth of the largest entry of all.
    """
    assert found.keys() == expected.keys()
    least = 1e-6 * max(float(value.abs().max()) for value in expected.values())
    return max(
        float((found[name] - value).abs().max()) / max(float(value.abs().max()), least)
        for name, value in expected.items()
    )


def run(case: Case, *extensions: object) -> None:
    model, loss = extend(case.model), extend(case.loss)
    with backpack(*extensions):
        loss(reference.outputs_of(model, case.inputs), case.targets).backward()


def collected(case: Case, field: str) -> dict[str, Tensor]:
    return {name: getattr(p, field) for name, p in reference.trained(case.model).items()}


@pytest.mark.parametrize("name", ZOO)
def test_batch_grad_is_each_samples_share_of_the_gradient(name: str) -> None:
    case = make(name)
    run(case, BatchGrad())
    expected = reference.batch_grad(case.model, case.loss, case.inputs, case.targets, case.samples)
    found = collected(case, "grad_batch")
    assert largest_error(found, expected) < 1e-12
    gradient = {k: p.grad for k, p in reference.trained(case.model).items()}
    assert largest_error({k: rows.sum(0) for k, rows in found.items()}, gradient) < 1e-12


@pytest.mark.parametrize("name", ZOO)
def test_diag_ggn_exact_is_the_diagonal_of_jacobian_hessian_jacobian(name: str) -> None:
    case = make(name)
    run(case, DiagGGNExact())
    expected = reference.diag_ggn(case.model, case.loss, case.inputs, case.targets)
    assert largest_error(collected(case, "diag_ggn_exact"), expected) < 1e-12


@pytest.mark.parametrize("name", ZOO)
def test_evaluate_equals_backpack(name: str) -> None:
    case = make(name)
    torch.manual_seed(1)
    run(case, BatchGrad(), DiagGGNMC(2), DiagGGNExact())
    torch.manual_seed(1)
    other = make(name)
    result = evaluate(
        other.model,
        other.loss,
        other.inputs,
        other.targets,
        ("grad", "grad_batch", "diag_ggn_mc", "diag_ggn_exact"),
        mc_samples=2,
    )
    for field in ("grad", "grad_batch", "diag_ggn_mc", "diag_ggn_exact"):
        assert largest_error(result.quantities[field], collected(case, field)) < 1e-12
    assert all(not hasattr(p, "grad_batch") and p.grad is None for p in other.model.parameters())


@pytest.mark.parametrize("name", ["mlp", "mlp_squared_error", "weighted_classes", "segmentation"])
def test_the_mean_of_many_draws_tends_to_the_exact_diagonal(name: str) -> None:
    case = make(name)
    exact = reference.diag_ggn(case.model, case.loss, case.inputs, case.targets)

    def error(draws: int) -> float:
        result = evaluate(
            case.model, case.loss, case.inputs, case.targets, ["diag_ggn_mc"],
            seed=0, mc_samples=draws,
        )  # fmt: skip
        found = result.quantities["diag_ggn_mc"]
        difference = sum(float((found[k] - v).square().sum()) for k, v in exact.items())
        return (difference / sum(float(v.square().sum()) for v in exact.values())) ** 0.5

    few, many = error(4), error(4096)
    assert many < 0.05
    assert many < few / 8  # falls as 1 / sqrt(draws): by 32 here, up to chance
