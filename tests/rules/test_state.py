"""What a rule remembers is plain values: a step is a pure function of what it is given."""

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import pytest
import torch
from curvserve_client.errors import InvalidRule
from curvserve_client.rules import (
    KFAC,
    RULES,
    SGD,
    Adam,
    DiagGGN,
    Rule,
    RuleState,
    Sophia,
    override_rule,
)
from torch import Tensor

from tests.rules.problem import Problem, Run, tensors, vector

FULL: dict[str, Rule] = {
    "sgd": SGD(0.05, momentum=0.9, nesterov=True, weight_decay=0.01),
    "adam": Adam(0.05, weight_decay=0.01, l2=0.01),
    "sophia": Sophia(0.05, curvature_interval=3, gamma=1.0),
    "kfac": KFAC(0.1, damping=1.0, momentum=0.5, inverse_interval=3, kl_clip=0.1),
    "diag_ggn": DiagGGN(
        0.1,
        damping=1.0,
        momentum=0.9,
        beta2=0.9,
        curvature_interval=3,
        exponent=0.5,
        clip=1.0,
        kl_clip=0.1,
        weight_decay=0.01,
        l2=0.01,
        damping_interval=2,
        quantiles=True,
    ),
    "diag_ggn, plain": DiagGGN(),
}
EVERY_RULE = pytest.mark.parametrize("rule", FULL.values(), ids=FULL)


def leaves(value: Any) -> Iterator[Tensor]:
    """Every tensor in nested mappings, lists and states."""
    if isinstance(value, Tensor):
        yield value
    elif dataclasses.is_dataclass(value):
        yield from leaves(vars(value))
    elif isinstance(value, Mapping):
        yield from (leaf for each in value.values() for leaf in leaves(each))
    elif isinstance(value, list | tuple):
        yield from (leaf for each in value for leaf in leaves(each))


def same(left: Mapping[str, Tensor], right: Mapping[str, Tensor]) -> bool:
    return left.keys() == right.keys() and all(
        torch.equal(left[name], right[name]) for name in left
    )


def no_loss(_: Mapping[str, Tensor]) -> float:
    raise AssertionError("this rule tries no step")


def test_every_rule_is_here() -> None:
    assert {rule.name for rule in FULL.values()} == set(RULES)


@EVERY_RULE
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_what_is_given_is_never_written(rule: Rule, dtype: torch.dtype) -> None:
    run = Run(Problem(), dtype).begin(rule)
    for _ in range(7):
        quantities = run.quantities(rule)
        given = list(leaves([run.parameters, quantities, run.state]))
        before = [(tensor.clone(), tensor._version) for tensor in given]
        scalars = dict(run.state.scalars)
        update = rule.update(run.parameters, quantities, run.state, loss=5.0, loss_at=lambda _: 4.0)
        assert all(
            torch.equal(tensor, values) and tensor._version == version
            for tensor, (values, version) in zip(given, before, strict=True)
        )
        assert run.state.scalars == scalars
        owned = {tensor.data_ptr() for tensor in leaves([run.parameters, quantities])}
        assert owned.isdisjoint(t.data_ptr() for t in leaves(update.state))
        run.parameters, run.state = update.parameters, update.state


@EVERY_RULE
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_parameters_keep_shape_and_dtype(rule: Rule, dtype: torch.dtype) -> None:
    run = Run(Problem(), dtype).begin(rule)
    before = run.parameters
    for _ in range(4):
        update = run.step(rule)
    assert list(update.parameters) == list(before)
    for name, tensor in update.parameters.items():
        assert (tensor.dtype, tensor.shape) == (dtype, before[name].shape)
        assert not torch.equal(tensor, before[name])


@EVERY_RULE
@pytest.mark.parametrize("at", [0, 1, 2, 5])
def test_a_state_taken_apart_and_put_together_goes_on_with_the_same_bits(
    rule: Rule, at: int
) -> None:
    straight, broken = (Run(Problem(1)).begin(rule) for _ in range(2))
    for count in range(9):
        if count == at:
            state = broken.state
            scalars = {name: float(value) for name, value in state.scalars.items()}
            slots = {
                slot: {name: tensor.clone() for name, tensor in named.items()}
                for slot, named in state.tensors.items()
                if named
            }
            broken.state = RuleState(scalars, slots)
        straight.step(rule)
        broken.step(rule)
    assert same(straight.parameters, broken.parameters)
    assert straight.state.scalars == broken.state.scalars


@EVERY_RULE
def test_float32_stays_near_float64(rule: Rule) -> None:
    exact = Run(Problem(2)).steps(rule, 8)
    rounded = Run(Problem(2), torch.float32).steps(rule, 8)
    np.testing.assert_allclose(rounded[-1], exact[-1], rtol=2e-4, atol=2e-5)


@EVERY_RULE
def test_averages_of_bfloat16_are_kept_in_float32(rule: Rule) -> None:
    run = Run(Problem(), torch.bfloat16).begin(rule)
    for _ in range(3):
        run.step(rule)
    assert {t.dtype for t in leaves(run.state)} <= {torch.float32}


@EVERY_RULE
def test_a_parameter_without_a_gradient_is_the_tensor_that_was_given(rule: Rule) -> None:
    run = Run(Problem()).begin(rule)
    quantities = {
        quantity: {"bias": named["bias"]} for quantity, named in run.quantities(rule).items()
    }
    update = rule.update(run.parameters, quantities, run.state, loss=5.0, loss_at=lambda _: 4.0)
    assert update.parameters["weight"] is run.parameters["weight"]
    assert not torch.equal(update.parameters["bias"], run.parameters["bias"])
    assert list(update.parameters) == list(run.parameters)


@pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
def test_no_step_with_an_lr_of_zero(rule: type[Rule]) -> None:
    run = Run(Problem()).begin(rule(lr=0))
    before = run.parameters
    assert same(run.step(rule(lr=0)).parameters, before)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_plain_diag_ggn_is_one_addcdiv_and_remembers_no_tensor(dtype: torch.dtype) -> None:
    rule, run = DiagGGN(0.05, 1.0), Run(Problem(), dtype).begin(DiagGGN())
    for _ in range(5):
        quantities, before = run.quantities(rule), run.parameters
        update = run.step(rule)
        for name, parameter in before.items():
            g, h = quantities["grad"][name], quantities["diag_ggn_mc"][name]
            expected = torch.addcdiv(parameter, g, h + 1.0, value=-0.05)
            assert torch.equal(update.parameters[name], expected)
    assert (run.state.scalars, run.state.tensors) == ({"steps": 5.0}, {})


@pytest.mark.parametrize("rule", [DiagGGN(), SGD()], ids=["diag_ggn", "sgd"])
def test_the_bits_do_not_depend_on_layout(rule: Rule) -> None:
    draws = torch.randn((3, 37, 41), generator=torch.Generator().manual_seed(2))
    p, g, h = draws[0], draws[1], draws[2].square()

    def moved(p: Tensor, g: Tensor, h: Tensor) -> Tensor:
        given = {"grad": {"p": g}, "diag_ggn_mc": {"p": h}}
        return rule.update({"p": p}, given, RuleState(), loss=0.0, loss_at=no_loss).parameters["p"]

    whole = moved(p, g, h)
    assert torch.equal(moved(*(tensor.mT.contiguous().mT for tensor in (p, g, h))), whole)
    for row in range(37):
        assert torch.equal(moved(p[row], g[row], h[row]), whole[row])


def test_the_curvature_is_asked_for_when_it_is_due() -> None:
    rule = DiagGGN(curvature_interval=4, curvature_warmup=2)
    run = Run(Problem()).begin(rule)
    asked = []
    for _ in range(9):
        asked.append("diag_ggn_mc" in rule.quantities(run.state))
        run.step(rule)
    assert asked == [True, True, False, False, True, False, False, False, True]


def test_an_interval_set_for_one_step_finds_no_curvature_and_asks_for_it() -> None:
    rule = DiagGGN()
    run = Run(Problem()).begin(rule)
    run.step(rule)
    once = override_rule(rule, {"curvature_interval": 10})
    assert once.quantities(run.state) == ("grad", "diag_ggn_mc")
    run.step(once)
    assert once.quantities(run.state) == ("grad",)


def test_a_parameter_whose_curvature_was_never_computed_is_named() -> None:
    rule = DiagGGN(curvature_interval=10)
    run = Run(Problem()).begin(rule)
    quantities = {name: {"bias": both["bias"]} for name, both in run.quantities(rule).items()}
    state = rule.update(run.parameters, quantities, run.state, loss=0.0, loss_at=no_loss).state
    gradients = {"grad": tensors(Problem().begin())}
    with pytest.raises(InvalidRule, match="no curvature of weight is known") as caught:
        rule.update(run.parameters, gradients, state, loss=0.0, loss_at=no_loss)
    assert caught.value.tensor == "weight"


def test_options_that_one_step_leaves_out_find_their_memory_again() -> None:
    rule = DiagGGN(momentum=0.9)
    run = Run(Problem()).begin(rule)
    run.step(rule)
    kept = run.state.tensors["momentum"]
    run.step(override_rule(rule, {"momentum": 0.0}))
    assert same(run.state.tensors["momentum"], kept)


def test_quantiles_are_those_of_the_curvature() -> None:
    rule = DiagGGN(quantiles=True)
    run = Run(Problem()).begin(rule)
    curvature = vector(run.quantities(rule)["diag_ggn_mc"])
    metrics = run.step(rule).metrics
    found = [float(metrics[f"curvature_{level}"]) for level in ("q10", "q50", "q90")]
    np.testing.assert_allclose(found, np.quantile(curvature, [0.1, 0.5, 0.9]), rtol=1e-5)


def test_quantiles_of_many_coordinates_are_near_those_of_all() -> None:
    rule, h = DiagGGN(quantiles=True), torch.rand(600, 500)
    given = {"grad": {"p": h}, "diag_ggn_mc": {"p": h}}
    metrics = rule.update({"p": h}, given, RuleState(), loss=0.0, loss_at=no_loss).metrics
    assert float(metrics["curvature_q50"]) == pytest.approx(0.5, abs=0.03)


@pytest.mark.parametrize("factors", [None, [torch.eye(3)], [torch.eye(4), torch.eye(3)]])
def test_kfac_names_the_parameter_that_has_no_factors(factors: list[Tensor] | None) -> None:
    rule = KFAC()
    run = Run(Problem()).begin(rule)
    quantities = run.quantities(rule)
    del quantities["kfac"]["weight"]
    if factors is not None:
        quantities["kfac"]["weight"] = factors
    with pytest.raises(InvalidRule, match=r"weight of shape \[3, 4\]") as caught:
        rule.update(run.parameters, quantities, run.state, loss=0.0, loss_at=no_loss)
    assert (caught.value.tensor, caught.value.expected) == ("weight", "sizes [3, 4]")


def test_kfac_of_vectors_alone_goes_on_where_nothing_is_kept_of_matrices() -> None:
    rule, bias = KFAC(inverse_interval=1, damping=1.0), Problem().factors(0)["bias"]
    parameters, state = {"bias": torch.ones(5).double()}, RuleState()
    given = {"grad": parameters, "kfac": {"bias": [torch.tensor(bias[0])]}}
    for _ in range(3):
        state = rule.update(parameters, given, state, loss=0.0, loss_at=no_loss).state
        state = RuleState(
            state.scalars, {slot: named for slot, named in state.tensors.items() if named}
        )
    assert state.tensors.keys() == {"outer", "outer_inverse"}


def test_kfac_takes_factors_that_are_zero() -> None:
    rule = KFAC(lr=1.0, damping=4.0, kl_clip=0.0)
    run = Run(Problem()).begin(rule)
    quantities = run.quantities(rule)
    for factor in leaves(quantities["kfac"]):
        factor.zero_()
    update = rule.update(run.parameters, quantities, run.state, loss=0.0, loss_at=no_loss)
    for name, parameter in run.parameters.items():
        expected = parameter - quantities["grad"][name] / 4.0
        torch.testing.assert_close(update.parameters[name], expected)


def test_kfac_asks_for_a_larger_damping_where_a_factor_cannot_be_inverted() -> None:
    rule = KFAC(damping=1e-6)
    run = Run(Problem()).begin(rule)
    quantities = run.quantities(rule)
    quantities["kfac"]["bias"] = [-torch.eye(5, dtype=torch.float64)]
    with pytest.raises(InvalidRule, match="a damped factor of bias is not positive definite"):
        rule.update(run.parameters, quantities, run.state, loss=0.0, loss_at=no_loss)
