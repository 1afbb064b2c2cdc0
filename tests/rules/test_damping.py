"""Levenberg-Marquardt: a step is tried, the damping follows, and what makes it worse is undone."""

import math

import pytest
import torch
from curvserve_client.rules import DiagGGN, RuleState, Update

from tests.rules.problem import Problem, Run

ONE = {"p": torch.tensor([2.0], dtype=torch.float64)}


def tried(change: float, rule: DiagGGN, state: RuleState | None = None) -> Update:
    """A step with g = 1 and h = 0 whose loss changes from 10 by so much."""
    given = {"grad": {"p": torch.ones(1).double()}, "diag_ggn_mc": {"p": torch.zeros(1).double()}}
    return rule.update(ONE, given, state or RuleState(), loss=10.0, loss_at=lambda _: 10 + change)


@pytest.mark.parametrize(
    ("share", "factor"),
    [(1.0, 0.95), (0.76, 0.95), (0.74, 1.0), (0.26, 1.0), (0.24, 1 / 0.95), (0.0, 1 / 0.95)],
)
def test_the_damping_follows_the_ratio(share: float, factor: float) -> None:
    # lr 0.5, damping 2: the change is -0.25, foretold -0.25 + 0.5 * 2 * 0.25^2 = -0.1875
    update = tried(-0.1875 * share, DiagGGN(0.5, 2.0, damping_interval=1))
    assert update.metrics["reduction_ratio"] == pytest.approx(share)
    assert (update.metrics["accepted"], update.metrics["damping"]) == (1.0, 2.0)
    assert update.state.scalars["damping"] == pytest.approx(2.0 * factor)
    assert update.parameters["p"].item() == 1.75


@pytest.mark.parametrize("change", [0.1, math.inf, math.nan])
def test_a_step_that_makes_the_loss_grow_is_refused_and_raises_the_damping(change: float) -> None:
    state = RuleState({"steps": 4.0})
    update = tried(change, DiagGGN(0.5, 2.0, momentum=0.9, damping_interval=5), state)
    assert update.parameters["p"] is ONE["p"]
    assert update.metrics["accepted"] == 0.0
    assert ("reduction_ratio" in update.metrics) == math.isfinite(change)
    assert update.state.tensors == {}
    assert update.state.scalars["steps"] == 4.0
    assert update.state.scalars["damping"] == pytest.approx(2.0 / 0.95**5)


def test_after_a_refused_step_the_next_one_is_tried_too() -> None:
    rule = DiagGGN(0.5, 2.0, damping_interval=5)
    first = tried(1.0, rule, RuleState({"steps": 4.0}))
    second = tried(-1.0, rule, first.state)
    third = tried(-1.0, rule, second.state)
    assert [update.metrics.get("accepted") for update in (first, second, third)] == [0.0, 1.0, None]
    assert second.metrics["damping"] == first.state.scalars["damping"]


@pytest.mark.parametrize(("change", "bound"), [(-1.0, 1.9), (1.0, 2.1)])
def test_the_damping_stays_within_its_bounds(change: float, bound: float) -> None:
    rule, state = DiagGGN(0.5, 2.0, damping_interval=1, damping_min=1.9, damping_max=2.1), None
    for _ in range(4):
        state = tried(change, rule, state).state
    assert state is not None and state.scalars["damping"] == bound


def test_a_change_hidden_by_rounding_tells_nothing() -> None:
    update = tried(1e-15, DiagGGN(1e-16, 2.0, damping_interval=1))
    assert update.metrics == {"damping": 2.0, "accepted": 1.0}
    assert update.state.scalars == {"steps": 1.0, "damping": 2.0}


def test_steps_between_two_trials_cost_no_loss() -> None:
    def refuse(_: object) -> float:
        raise AssertionError("nothing is tried at this step")

    rule, run = DiagGGN(damping_interval=5), Run(Problem())
    run.begin(rule)
    for _ in range(4):
        update = rule.update(
            run.parameters, run.quantities(rule), run.state, loss=0.0, loss_at=refuse
        )
        run.parameters, run.state = update.parameters, update.state
    with pytest.raises(AssertionError, match="nothing is tried"):
        rule.update(run.parameters, run.quantities(rule), run.state, loss=0.0, loss_at=refuse)


def test_an_adapted_damping_is_what_the_next_steps_use_whatever_the_option_says() -> None:
    rule = DiagGGN(0.5, 2.0, damping_interval=1)
    adapted = tried(-1.0, rule).state
    later = tried(-1.0, DiagGGN(0.5, 7.0, damping_interval=1), adapted)
    assert later.metrics["damping"] == adapted.scalars["damping"]
    assert tried(-1.0, DiagGGN(0.5, 7.0), adapted).metrics["damping"] == 7.0


def test_damping_that_is_far_too_small_is_found_by_trying() -> None:
    rule, problem = DiagGGN(1.0, 1e-3, damping_interval=1), Problem(3)
    run = Run(problem).begin(rule)
    accepted = [float(run.step(rule).metrics["accepted"]) for _ in range(200)]
    assert 0.0 in accepted[:20] and 1.0 in accepted
    assert run.state.scalars["damping"] > 1e-2
    losses = (
        problem.loss(problem.begin()),
        problem.loss(torch.cat([p.flatten() for p in run.parameters.values()]).numpy()),
    )
    assert losses[1] < 0.2 * losses[0]
