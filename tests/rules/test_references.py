"""Every rule, over many steps and any options, is its formula in float64; where torch has the rule,
it is torch's."""

import itertools
from collections.abc import Callable, Iterator
from dataclasses import fields
from typing import Any

import numpy as np
import pytest
import torch
from curvserve_client.rules import RULES, make_rule
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.rules import reference
from tests.rules.problem import Problem, Run, Vector, tensors, vector

STEPS = 10
UNTIMED = settings(deadline=None, max_examples=60)  # torch's first optimizer imports for a second
SEEDS = st.integers(0, 2**32)
FRACTIONS = st.sampled_from([0.0, 0.3, 0.9, 0.99])
DECAYS = st.sampled_from([0.0, 0.01, 0.3])
INTERVALS = st.sampled_from([1, 2, 5])
LRS = st.floats(0, 1.5)

OPTIONS: dict[str, dict[str, st.SearchStrategy[Any]]] = {
    "sgd": {
        "lr": st.floats(0, 0.3),
        "momentum": st.sampled_from([0.3, 0.9]),
        "nesterov": st.booleans(),
        "weight_decay": DECAYS,
    },
    "adam": {
        "lr": LRS,
        "beta1": FRACTIONS,
        "beta2": FRACTIONS,
        "eps": st.floats(1e-8, 1),
        "weight_decay": DECAYS,
        "l2": DECAYS,
    },
    "sophia": {
        "lr": LRS,
        "beta1": FRACTIONS,
        "beta2": FRACTIONS,
        "gamma": st.floats(0.01, 10),
        "eps": st.sampled_from([1e-12, 0.1]),
        "weight_decay": DECAYS,
        "curvature_interval": INTERVALS,
    },
    "diag_ggn": {
        # of a step that is shorter still the reduction ratio is rounding
        "lr": st.just(0.0) | st.floats(1e-4, 1.5),
        "damping": st.floats(0.5, 100),
        "momentum": FRACTIONS,
        "beta2": FRACTIONS,
        "curvature_interval": INTERVALS,
        "curvature_warmup": st.integers(0, 4),
        "exponent": st.sampled_from([1.0, 0.5, 0.8]),
        "clip": st.sampled_from([0.0, 0.1, 1.0]),
        "kl_clip": st.sampled_from([0.0, 1e-3, 1.0]),
        "weight_decay": DECAYS,
        "l2": DECAYS,
        "damping_interval": st.sampled_from([0, 0, 1, 2, 5]),
        "damping_min": st.sampled_from([1e-6, 0.5]),
        "damping_max": st.sampled_from([1e4, 2.0]),
    },
    "kfac": {
        "lr": LRS,
        "damping": st.floats(0.5, 100),
        "momentum": FRACTIONS,
        "beta2": FRACTIONS,
        "curvature_interval": INTERVALS,
        "inverse_interval": INTERVALS,
        "kl_clip": st.sampled_from([0.0, 1e-3, 1.0]),
        "weight_decay": DECAYS,
    },
}


def drawn(name: str) -> st.SearchStrategy[dict[str, Any]]:
    return st.fixed_dictionaries(OPTIONS[name])


def held(name: str, options: dict[str, Any], seed: int, expected: Iterator[Vector]) -> None:
    """Hold every step of a rule against a reference."""
    found = Run(Problem(seed)).steps(make_rule(name, options), STEPS)
    for one, other in zip(found, itertools.islice(expected, STEPS), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-9, atol=1e-9 * np.abs(other).max())


@pytest.mark.parametrize("name", RULES)
def test_every_option_is_varied_here(name: str) -> None:
    known = {field.name for field in fields(RULES[name])} - {"quantiles"}
    assert known == set(OPTIONS[name])


@UNTIMED
@given(drawn("sgd"), SEEDS)
def test_sgd(options: dict[str, Any], seed: int) -> None:
    held("sgd", options, seed, reference.sgd(Problem(seed), **options))


@UNTIMED
@given(drawn("adam"), SEEDS)
def test_adam(options: dict[str, Any], seed: int) -> None:
    held("adam", options, seed, reference.adam(Problem(seed), **options))


@UNTIMED
@given(drawn("sophia"), SEEDS)
def test_sophia(options: dict[str, Any], seed: int) -> None:
    held("sophia", options, seed, reference.sophia(Problem(seed), **options))


@UNTIMED
@given(drawn("kfac"), SEEDS)
def test_kfac(options: dict[str, Any], seed: int) -> None:
    held("kfac", options, seed, reference.kfac(Problem(seed), **options))


@UNTIMED
@given(drawn("diag_ggn"), SEEDS)
def test_diag_ggn_and_what_it_tells(options: dict[str, Any], seed: int) -> None:
    rule, run = make_rule("diag_ggn", options), Run(Problem(seed))
    run.begin(rule)
    told: dict[str, Any] = {}
    for expected in itertools.islice(reference.diag_ggn(Problem(seed), told, **options), STEPS):
        update = run.step(rule)
        found = vector(update.parameters)
        np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-9 * np.abs(expected).max())
        metrics = {name: float(value) for name, value in update.metrics.items()}
        assert metrics == pytest.approx(told, rel=1e-5, abs=1e-8)


TorchRule = Callable[[list[torch.Tensor]], torch.optim.Optimizer]


def torchs(make: TorchRule, problem: Problem) -> Iterator[Vector]:
    parameters = tensors(problem.begin())
    optimizer = make(list(parameters.values()))
    while True:
        gradients = tensors(problem.gradient(vector(parameters)))
        for name, parameter in parameters.items():
            parameter.grad = gradients[name]
        optimizer.step()
        yield vector(parameters)


@UNTIMED
@given(drawn("sgd"), SEEDS)
def test_sgd_is_torchs(options: dict[str, Any], seed: int) -> None:
    expected = torchs(lambda parameters: torch.optim.SGD(parameters, **options), Problem(seed))
    held("sgd", options, seed, expected)


@UNTIMED
@given(drawn("adam"), SEEDS)
def test_adam_is_torchs(options: dict[str, Any], seed: int) -> None:
    betas = (options["beta1"], options["beta2"])

    def adam(parameters: list[torch.Tensor]) -> torch.optim.Optimizer:
        lr, eps = options["lr"], options["eps"]
        return torch.optim.Adam(parameters, lr=lr, betas=betas, eps=eps, weight_decay=options["l2"])

    plain = options | {"weight_decay": 0.0}
    held("adam", plain, seed, torchs(adam, Problem(seed)))


@UNTIMED
@given(drawn("adam"), SEEDS)
def test_decoupled_decay_is_adamws(options: dict[str, Any], seed: int) -> None:
    betas = (options["beta1"], options["beta2"])

    def adamw(parameters: list[torch.Tensor]) -> torch.optim.Optimizer:
        lr, eps = options["lr"], options["eps"]
        decay = options["weight_decay"]
        return torch.optim.AdamW(parameters, lr=lr, betas=betas, eps=eps, weight_decay=decay)

    held("adam", options | {"l2": 0.0}, seed, torchs(adamw, Problem(seed)))
