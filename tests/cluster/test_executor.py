"""What workers compute together is what one process computes alone."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from curvserve_client.errors import InvalidBatch, InvalidRule, NonFinite
from curvserve_client.rules import KFAC, SGD, Adam, DiagGGN, Rule, RuleGroup, Sophia

from curvserve.engine.quantities import QUANTITIES
from curvserve.sessions import SessionState
from curvserve.sessions.executor import Executor
from curvserve.sessions.pending import Reduction
from tests.cluster.both import Both, distance, options
from tests.cluster.nets import DOUBLE, SINGLE, batch

STEPS = 50
RULES: dict[str, Rule] = {
    "diag_ggn": DiagGGN(lr=0.01),
    "trials": DiagGGN(lr=0.01, damping_interval=5, kl_clip=1e-3, quantiles=True),
    "averaged": DiagGGN(lr=0.01, momentum=0.5, beta2=0.9, clip=0.5, l2=0.01),
    "sgd": SGD(lr=0.01, momentum=0.5),
    "adam": Adam(lr=1e-3, eps=1e-3),
    "sophia": Sophia(lr=1e-3, curvature_interval=3, eps=1e-3),
    "kfac": KFAC(lr=0.01, damping=1.0),
}
TEAMS = {
    "1 worker, float32": (SINGLE, 1, False, 1e-6),
    "2 workers, float32": (SINGLE, 2, False, 1e-6),
    "4 workers, float64": (DOUBLE, 4, False, 1e-12),
    "4 workers, float64, slices": (DOUBLE, 4, True, 1e-12),
    "2 workers, float64, slices": (DOUBLE, 2, True, 1e-12),
}
SAMPLE = ("2 workers, float64, slices",)
"""What `make test` has of them; the others take minutes."""


@pytest.fixture(
    scope="module",
    params=[
        pytest.param(name, marks=[] if name in SAMPLE else pytest.mark.campaign) for name in TEAMS
    ],
)
def team(request: pytest.FixtureRequest, cluster: None) -> Iterator[tuple[Both, float]]:
    """A group of workers, and how far it may be off."""
    model, workers, sharded, bound = TEAMS[request.param]
    both = Both(model, options(workers, shard_state=sharded))
    yield both, bound
    both.close()


def some(both: Both, samples: int = 9, seed: int = 0) -> dict[str, torch.Tensor]:
    return batch(samples, seed, both.model.inputs.dtype)


async def trained(
    executor: Executor, state: SessionState, both: Both, rule: Rule, steps: int = STEPS
) -> Any:
    """Take steps on batches of many sizes, some with fewer samples than there are workers."""
    told = []
    for number in range(steps):
        given = some(both, 1 + 3 * number % 11, number)
        state, result = await executor.step(state, given, rule)
        told.append((result.loss, result.step_norm, result.samples, result.metrics, result.update))
    return state, told, await executor.to_host(state)


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=[] if name in ("averaged", "kfac") else pytest.mark.campaign)
        for name in RULES
    ],
)
def test_fifty_steps_are_those_of_one_process(team: tuple[Both, float], name: str) -> None:
    both, bound = team
    rule = RULES[name]
    if both.workers.shards(both.there) and not rule.elementwise:
        with pytest.raises(InvalidRule, match="slice of them"):
            both.run(both.workers.step(both.there, some(both), rule))
        return
    (there, told, whole), (here, expected, alone) = both.on_both(
        lambda executor, state: trained(executor, state, both, rule)
    )
    assert (there.version, there.steps) == (here.version, here.steps) == (STEPS, STEPS)
    assert distance(whole.parameters, alone.parameters) < bound
    assert list(whole.rule_state.tensors) == list(alone.rule_state.tensors)
    for slot, tensors in alone.rule_state.tensors.items():
        assert distance(whole.rule_state.tensors[slot], tensors) < bound * 10
    assert whole.rule_state.scalars == pytest.approx(alone.rule_state.scalars, rel=bound * 10)
    for (loss, norm, samples, metrics, update), other in zip(told, expected, strict=True):
        assert (loss, norm) == pytest.approx(other[:2], rel=bound * 100)
        assert samples == other[2]
        assert metrics == pytest.approx(other[3], abs=1e-6)
        assert update.keys() == other[4].keys()
        for key, value in update.items():
            # a quantile is one coordinate, a share is a count: roundings decide between neighbours
            counted = "curvature" in key or "clipped" in key
            near = {"rel": 1e-3, "abs": 0.05} if counted else {"rel": bound * 1000}
            assert value == pytest.approx(other[4][key], **near)


def test_the_same_steps_again_have_the_same_bits(team: tuple[Both, float]) -> None:
    both, _ = team
    rule = RULES["averaged"]
    first, again = (
        both.run(trained(both.workers, both.there, both, rule, 12))[0].digest for _ in range(2)
    )
    assert first == again != both.there.digest


@pytest.mark.parametrize("samples", [1, 3, 9])
def test_every_quantity_of_a_batch(team: tuple[Both, float], samples: int) -> None:
    both, bound = team
    names = ["grad", *both.run(both.here.support(both.model.name)).quantities]
    names = [name for name in dict.fromkeys(names) if name == "grad" or name in QUANTITIES]
    assert len(names) > 15
    there, here = both.on_both(lambda e, state: e.curvature(state, some(both, samples), names, 2))
    assert list(there.tensors) == list(here.tensors) == names
    # single precision adds up squares of small numbers: other orders are further apart
    allowed = bound if bound < 1e-9 else 2e-5
    for name in names:
        assert distance(there.tensors[name], here.tensors[name]) < allowed, name
    assert there.loss == pytest.approx(here.loss, rel=bound)
    assert there.metrics == pytest.approx(here.metrics)
    assert (there.version, there.seed, there.samples) == (here.version, here.seed, here.samples)


def test_two_halves_of_a_step(team: tuple[Both, float]) -> None:
    both, bound = team

    async def halves(executor: Executor, state: SessionState) -> Any:
        first, _ = await executor.forward_backward(state, some(both, 5, 1), None, Reduction.MEAN)
        both_batches, told = await executor.forward_backward(
            state, some(both, 2, 2), first, Reduction.MEAN
        )
        names = list(state.parameters)
        groups = [RuleGroup(names[:2], DiagGGN(lr=0.1)), RuleGroup(names[2:3], DiagGGN(lr=0.01))]
        after, result = await executor.optim_step(state, both_batches, groups, {names[0]: 0.5})
        return told, result, await executor.parameters(after)

    (told, result, there), (expected, other, here) = both.on_both(halves)
    assert distance(there, here) < bound
    assert (told.seed, told.samples, told.pending) == (expected.seed, 2, 2)
    assert told.grad_norms == pytest.approx(expected.grad_norms, rel=bound * 10)
    assert result.samples == other.samples == 7
    assert result.loss == pytest.approx(other.loss, rel=bound * 10)


def test_evaluation_and_parameters_from_outside(team: tuple[Both, float]) -> None:
    both, bound = team

    async def loaded(executor: Executor, state: SessionState) -> Any:
        doubled = {name: 2 * p for name, p in (await executor.parameters(state)).items()}
        state = await executor.load(state, doubled)
        return await executor.evaluate(state, some(both, 7)), await executor.parameters(state)

    (found, there), (expected, here) = both.on_both(loaded)
    assert found.loss == pytest.approx(expected.loss, rel=bound * 10)
    assert found.metrics == pytest.approx(expected.metrics)
    assert (found.version, found.samples) == (expected.version, expected.samples) == (1, 7)
    assert distance(there, here) == 0


def test_what_is_refused_changes_nothing_and_leaves_nobody_waiting(
    team: tuple[Both, float],
) -> None:
    both, _ = team
    workers, state, good = both.workers, both.there, some(both)
    parameters = both.run(workers.parameters(state))
    nan = good["inputs"].clone()
    nan[0, 0, 0, 0] = torch.nan  # of one worker's part alone
    most = torch.finfo(nan.dtype).max
    before = both.run(workers.evaluate(state, good))
    with pytest.raises(InvalidBatch, match="inputs"):
        both.run(workers.step(state, good | {"inputs": nan}, DiagGGN()))
    with pytest.raises(NonFinite, match="not finite"):
        both.run(workers.step(state, good, SGD(lr=most, weight_decay=most)))
    with pytest.raises(NonFinite, match="not finite"):
        both.run(workers.load(state, {name: p * torch.nan for name, p in parameters.items()}))
    assert both.run(workers.evaluate(state, good)) == before
    assert workers.holds(state)
