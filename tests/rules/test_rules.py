"""Update rules: the registry, the options, and the arithmetic against float64 formulas."""

import dataclasses
import math

import pytest
import torch
from curvserve_client.errors import InvalidRule
from curvserve_client.rules import (
    RULES,
    SGD,
    DiagGGN,
    Rule,
    make_rule,
    override_rule,
    rule_options,
)
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

LRS = st.floats(0, 1e3)
DAMPINGS = st.floats(1e-6, 1e6)
EVERY_RULE = pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
NO_NUMBERS = [math.nan, math.inf, -math.inf, "0.1", None, True, 10**400, [0.1]]


def quantities(shape: tuple[int, ...], seed: int, dtype: torch.dtype) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    draws = torch.randn((3, *shape), generator=generator, dtype=dtype)
    return {"parameter": draws[0], "grad": draws[1], "diag_ggn_mc": draws[2].square()}


@given(LRS, DAMPINGS, st.integers(0, 2**32))
def test_diag_ggn_is_the_formula(lr: float, damping: float, seed: int) -> None:
    given_ = quantities((3, 4), seed, torch.float64)
    p, g, h = given_["parameter"], given_["grad"], given_["diag_ggn_mc"]
    updated = DiagGGN(lr, damping).update(p, given_)
    torch.testing.assert_close(updated, p - lr * g / (h + damping), rtol=1e-12, atol=1e-12)


@given(LRS, st.integers(0, 2**32))
def test_sgd_is_the_formula(lr: float, seed: int) -> None:
    given_ = quantities((3, 4), seed, torch.float64)
    p, g = given_["parameter"], given_["grad"]
    torch.testing.assert_close(SGD(lr).update(p, given_), p - lr * g, rtol=1e-12, atol=1e-12)


@EVERY_RULE
def test_float32_is_close_to_float64(rule: type[Rule]) -> None:
    exact = quantities((50, 20), 0, torch.float64)
    rounded = {name: tensor.float() for name, tensor in exact.items()}
    expected = rule().update(exact["parameter"], exact)
    found = rule().update(rounded["parameter"], rounded)
    torch.testing.assert_close(found.double(), expected, rtol=1e-6, atol=1e-6)


@EVERY_RULE
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_an_update_is_out_of_place_and_keeps_the_kind(rule: type[Rule], dtype: torch.dtype) -> None:
    given_ = quantities((2, 3, 5), 1, dtype)
    before = {name: tensor.clone() for name, tensor in given_.items()}
    updated = rule().update(given_["parameter"], given_)
    assert updated.dtype == dtype
    assert updated.shape == (2, 3, 5)
    assert all(torch.equal(tensor, before[name]) for name, tensor in given_.items())


@EVERY_RULE
def test_the_bits_do_not_depend_on_layout(rule: type[Rule]) -> None:
    given_ = quantities((37, 41), 2, torch.float32)
    whole = rule().update(given_["parameter"], given_)
    turned = {name: tensor.mT.contiguous().mT for name, tensor in given_.items()}
    assert torch.equal(rule().update(turned["parameter"], turned), whole)
    for row in range(37):
        one = {name: tensor[row] for name, tensor in given_.items()}
        assert torch.equal(rule().update(one["parameter"], one), whole[row])


@EVERY_RULE
def test_no_step_with_an_lr_of_zero(rule: type[Rule]) -> None:
    given_ = quantities((4,), 3, torch.float32)
    assert torch.equal(rule(lr=0).update(given_["parameter"], given_), given_["parameter"])


@EVERY_RULE
def test_a_rule_reads_only_what_it_says(rule: type[Rule]) -> None:
    given_ = quantities((4,), 4, torch.float32)
    needed = {name: given_[name] for name in rule.quantities}
    updated = rule().update(given_["parameter"], needed)
    assert torch.equal(updated, rule().update(given_["parameter"], given_))


@EVERY_RULE
def test_a_rule_is_found_by_its_name_and_options(rule: type[Rule]) -> None:
    made = make_rule(rule.name, {"lr": 0.25})
    assert type(made) is rule
    assert rule_options(made)["lr"] == 0.25
    assert make_rule(made.name, rule_options(made)) == made
    assert make_rule(rule.name) == rule()


def test_defaults_are_the_documented_ones() -> None:
    assert rule_options(DiagGGN()) == {"lr": 0.05, "damping": 1.0}


def test_an_override_leaves_the_rule_as_it_is() -> None:
    rule = DiagGGN(0.05, 1.0)
    assert override_rule(rule, {"damping": 2.0}) == DiagGGN(0.05, 2.0)
    assert override_rule(rule, {}) == rule == DiagGGN(0.05, 1.0)


def test_a_rule_cannot_be_changed() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        DiagGGN().lr = 1.0  # type: ignore[misc]


def test_an_unknown_rule_names_what_there_is() -> None:
    with pytest.raises(InvalidRule, match=r"no rule is called 'adam'; expected diag_ggn, sgd"):
        make_rule("adam")


def test_an_unknown_option_names_what_there_is() -> None:
    with pytest.raises(
        InvalidRule, match=r"'diag_ggn' has no option 'momentum'; expected lr, damp"
    ):
        make_rule("diag_ggn", {"momentum": 0.9})
    with pytest.raises(InvalidRule, match=r"'sgd' has no option 'damping'; expected lr"):
        override_rule(SGD(), {"damping": 1.0})
    with pytest.raises(InvalidRule, match="no option 'name'"):
        make_rule("sgd", {"name": 1.0})


@EVERY_RULE
@pytest.mark.parametrize("lr", [-0.1, *NO_NUMBERS], ids=str)
def test_an_lr_out_of_range_is_refused(rule: type[Rule], lr: float) -> None:
    with pytest.raises(InvalidRule, match="lr is .*; expected a finite number >= 0"):
        make_rule(rule.name, {"lr": lr})


@pytest.mark.parametrize("damping", [0, -1.0, *NO_NUMBERS], ids=str)
def test_a_damping_out_of_range_is_refused(damping: float) -> None:
    with pytest.raises(InvalidRule, match="damping is .*; expected a finite number > 0"):
        override_rule(DiagGGN(), {"damping": damping})
    with pytest.raises(ValueError, match="damping"):
        DiagGGN(damping=damping)
