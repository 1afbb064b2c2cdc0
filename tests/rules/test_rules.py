"""The registry of update rules, and their options."""

import dataclasses
import math
from typing import Any

import pytest
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

EVERY_RULE = pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
NO_NUMBERS = [math.nan, math.inf, -math.inf, "0.1", None, True, 10**400, [0.1]]


@EVERY_RULE
def test_a_rule_is_found_by_its_name_and_options(rule: type[Rule]) -> None:
    made = make_rule(rule.name, {"lr": 0.25})
    assert type(made) is rule
    assert rule_options(made)["lr"] == 0.25
    assert make_rule(made.name, rule_options(made)) == made
    assert make_rule(rule.name) == rule()


def test_with_its_defaults_diag_ggn_is_the_seeds_rule() -> None:
    options = rule_options(DiagGGN())
    assert (options.pop("lr"), options.pop("damping"), options.pop("exponent")) == (0.05, 1.0, 1.0)
    assert options.pop("curvature_interval") == 1
    assert (options.pop("damping_min"), options.pop("damping_max")) == (1e-6, 1e4)
    assert not any(options.values())


def test_an_override_leaves_the_rule_as_it_is() -> None:
    rule = DiagGGN(0.05, 1.0)
    assert override_rule(rule, {"damping": 2.0}) == DiagGGN(0.05, 2.0)
    assert override_rule(rule, {}) == rule == DiagGGN(0.05, 1.0)


def test_a_rule_cannot_be_changed() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        DiagGGN().lr = 1.0  # type: ignore[misc]  # that it is frozen is the claim


def test_an_unknown_rule_names_what_there_is() -> None:
    with pytest.raises(
        InvalidRule, match=r"no rule is called 'lion'; expected adam, diag_ggn, kfac, sgd, sophia"
    ):
        make_rule("lion")


def test_an_unknown_option_names_what_there_is() -> None:
    with pytest.raises(
        InvalidRule, match=r"'diag_ggn' has no option 'nesterov'; expected lr, damp"
    ):
        make_rule("diag_ggn", {"nesterov": True})
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


@pytest.mark.parametrize(
    ("rule", "option", "value", "expected"),
    [
        ("diag_ggn", "momentum", 1.0, "a finite number >= 0 and < 1"),
        ("diag_ggn", "exponent", 0.0, "a finite number > 0 and <= 1"),
        ("diag_ggn", "exponent", 1.5, "a finite number > 0 and <= 1"),
        ("diag_ggn", "curvature_interval", 0, "a whole number >= 1"),
        ("diag_ggn", "curvature_interval", 2.5, "a whole number >= 1"),
        ("diag_ggn", "curvature_warmup", -1, "a whole number >= 0"),
        ("diag_ggn", "damping_interval", True, "a whole number >= 0"),
        ("diag_ggn", "damping_min", 1e5, "damping_min: at most damping_max, 10000.0"),
        ("diag_ggn", "quantiles", 1, "true or false"),
        ("sgd", "nesterov", True, "false, or a momentum > 0"),
        ("sgd", "nesterov", 0.0, "true or false"),
        ("adam", "beta2", -0.1, "a finite number >= 0 and < 1"),
        ("sophia", "gamma", 0.0, "a finite number > 0"),
        ("kfac", "inverse_interval", 0, "a whole number >= 1"),
    ],
)
def test_a_value_out_of_range_is_told_with_what_was_expected(
    rule: str, option: str, value: Any, expected: str
) -> None:
    with pytest.raises(InvalidRule) as caught:
        make_rule(rule, {option: value})
    assert caught.value.detail == f"{option} is {value!r}"
    assert caught.value.expected == expected


def test_a_whole_number_may_come_as_json_writes_it() -> None:
    assert make_rule("diag_ggn", {"curvature_interval": 5.0}) == DiagGGN(curvature_interval=5)
    made = override_rule(DiagGGN(), {"damping_interval": 5.0})
    assert isinstance(rule_options(made)["damping_interval"], int)
