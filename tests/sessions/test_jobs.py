"""What is computed from a state leaves that state as it is, whatever happens."""

import math

import pytest
import torch
from curvserve_client.errors import InvalidBatch, InvalidRule, NonFinite, UnknownQuantity
from curvserve_client.rules import KFAC, RULES, SGD, Adam, DiagGGN, Rule, make_rule
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm

from curvserve.models import Model
from curvserve.sessions import jobs, steps
from curvserve.sessions.replica import Replica
from tests.sessions.small import (
    DROPPED,
    NORMALISED,
    PLAIN,
    batch,
    begin,
    classifier,
    copies,
    same,
)


def test_a_step_makes_the_next_version_and_leaves_this_one() -> None:
    replica, state = begin(PLAIN)
    before = copies(state)
    after, result = steps.step(replica, state, batch(), state.rule)
    assert (after.version, after.steps, result.version) == (1, 1, 1)
    assert same(state, before)
    assert not same(after, before)


def test_the_step_norm_is_the_length_of_the_change() -> None:
    replica, state = begin(PLAIN)
    after, result = steps.step(replica, state, batch(), state.rule)
    changes = [
        (after.parameters[name].double() - tensor.double()).flatten()
        for name, tensor in state.parameters.items()
    ]
    assert math.isclose(result.step_norm, torch.cat(changes).norm().item(), rel_tol=1e-6)


def test_a_step_is_the_rule_applied_to_what_curvature_answers() -> None:
    replica, state = begin(PLAIN, DiagGGN(lr=0.3, damping=0.1))
    found = jobs.curvature(replica, state, batch(), ("grad", "diag_ggn_mc"), 1)
    after, result = steps.step(replica, state, batch(), state.rule)
    made = state.rule.update(
        state.parameters, found.tensors, state.rule_state, loss=found.loss, loss_at=lambda _: 0.0
    )
    for name, tensor in made.parameters.items():
        assert torch.equal(after.parameters[name], tensor)
    assert after.rule_state.scalars == made.state.scalars
    assert result.update == made.metrics
    assert result.loss == found.loss


@pytest.mark.parametrize("name", RULES)
def test_a_session_remembers_what_its_rule_does(name: str) -> None:
    replica, state = begin(PLAIN, make_rule(name))
    assert state.rule_state.scalars["steps"] == 0
    for _ in range(3):
        before = copies(state)
        after, result = steps.step(replica, state, batch(), state.rule)
        assert same(state, before) and not same(after, before)
        assert all(math.isfinite(value) for value in result.update.values())
        state = after
    assert state.rule_state.scalars["steps"] == 3


def test_kfac_refuses_a_parameter_without_kronecker_factors_by_name() -> None:
    model = classifier("reparametrised", lambda: weight_norm(nn.Linear(5, 5)))
    replica, state = begin(model, KFAC())
    with pytest.raises(UnknownQuantity, match="original1. of ParametrizedLinear"):
        steps.step(replica, state, batch(), state.rule)


def test_a_step_sees_each_module_in_the_mode_that_the_model_gave_it() -> None:
    fixed = classifier("fixed", lambda: nn.Sequential(nn.BatchNorm1d(5).eval(), nn.Dropout(0.5)))
    replica, state = begin(fixed)
    one, other = (jobs.evaluate(replica, state, batch()).loss for _ in range(2))
    assert one == other  # no dropout there
    after, result = steps.step(replica, state, batch(), state.rule)
    for name, before in state.buffers.items():
        assert torch.equal(after.buffers[name], before)
    assert result.loss != one  # dropout here
    jobs.evaluate(replica, after, batch())
    assert steps.step(replica, state, batch(), state.rule)[1].loss == result.loss


def test_finding_what_a_model_has_changes_no_state_and_does_not_depend_on_one() -> None:
    replica, state = begin(NORMALISED, SGD())
    found = jobs.support(replica)
    assert found.quantities == ("grad",)
    after, _ = steps.step(replica, state, batch(), state.rule)
    before = copies(after)
    assert jobs.support(replica) == found
    assert same(after, before)  # its buffers, too, into which a pass in training mode writes
    jobs.evaluate(replica, after, batch())
    assert jobs.support(replica) == found
    assert same(after, before)


class Counting(nn.Module):
    """Counts its forward passes in a buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("passes", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        self.passes += 1
        return x


def test_the_pass_of_a_trial_leaves_no_trace_in_the_buffers() -> None:
    rule = DiagGGN(damping_interval=1)
    replica, state = begin(classifier("counting", Counting), rule)
    after, result = steps.step(replica, state, batch(), rule)
    assert "reduction_ratio" in result.update
    assert after.buffers["1.passes"].item() == 1


def test_a_step_is_tried_with_the_networks_own_draws() -> None:
    rule = DiagGGN(lr=1e-3, damping_interval=1)
    replica, state = begin(DROPPED, rule)
    _, result = steps.step(replica, state, batch(), rule)
    assert result.update["reduction_ratio"] == pytest.approx(1.0, abs=0.1)
    assert result.update["accepted"] == 1.0


def test_a_refused_step_makes_a_version_that_differs_in_the_damping_alone() -> None:
    rule = DiagGGN(lr=1e4, damping=1.0, damping_interval=1)
    replica, state = begin(PLAIN, rule)
    after, result = steps.step(replica, state, batch(), rule)
    assert (result.update["accepted"], result.step_norm, after.version) == (0.0, 0.0, 1)
    assert same(after, copies(state))
    assert after.rule_state.scalars["damping"] > 1.0


def test_what_a_rule_remembers_must_be_finite() -> None:
    replica, begun = begin(PLAIN, Adam())
    state = begun.loaded({name: p * 1e13 for name, p in begun.parameters.items()})
    with pytest.raises(NonFinite) as caught:
        steps.step(replica, state, batch(scale=1e10), state.rule)
    assert caught.value.tensor == "rule.square.0.weight"


def test_the_gradient_is_autograds() -> None:
    replica, state = begin(PLAIN)
    found = jobs.curvature(replica, state, batch(), ("grad",), 1)
    network = replica.bind(state)
    replica.loss(network(batch()["inputs"]), batch()["targets"]).backward()
    for name, parameter in network.named_parameters():
        torch.testing.assert_close(found.tensors["grad"][name], parameter.grad)


def test_the_same_seed_and_version_draw_the_same_curvature() -> None:
    replica, state = begin(PLAIN)
    names = ("diag_ggn_mc",)
    found = [jobs.curvature(replica, state, batch(), names, 2).tensors for _ in range(2)]
    later = state.loaded(state.parameters)
    other = jobs.curvature(replica, later, batch(), names, 2).tensors
    weight = "0.weight"
    assert torch.equal(found[0]["diag_ggn_mc"][weight], found[1]["diag_ggn_mc"][weight])
    assert not torch.equal(found[0]["diag_ggn_mc"][weight], other["diag_ggn_mc"][weight])


def test_what_a_network_draws_itself_is_repeatable_and_leaves_torchs_generator_alone() -> None:
    replica, state = begin(DROPPED)
    before = torch.random.get_rng_state()
    losses = [steps.step(replica, state, batch(), SGD())[1].loss for _ in range(2)]
    assert losses[0] == losses[1]
    assert torch.equal(torch.random.get_rng_state(), before)


def test_a_session_starts_where_the_seed_puts_the_network() -> None:
    _, state = begin(PLAIN, seed=7)
    with torch.random.fork_rng():
        torch.manual_seed(7)
        network = PLAIN.build()
    for name, parameter in network.named_parameters():
        assert torch.equal(state.parameters[name], parameter)


def test_a_step_moves_buffers_and_reading_does_not() -> None:
    replica, state = begin(NORMALISED, SGD())
    before = copies(state)
    jobs.evaluate(replica, state, batch())
    after, _ = steps.step(replica, state, batch(), state.rule)
    assert same(state, before)
    again, _ = steps.step(replica, after, batch(), state.rule)
    counts = [int(each.buffers["1.num_batches_tracked"]) for each in (state, after, again)]
    assert counts == [0, 1, 2]


@pytest.mark.parametrize(
    ("model", "rule"),
    [(PLAIN, DiagGGN()), (NORMALISED, SGD()), (DROPPED, DiagGGN()), (PLAIN, KFAC())],
)
def test_a_compiled_step_has_the_bits_of_an_eager_one(model: Model, rule: Rule) -> None:
    replica, state = begin(model, rule)
    assert replica.describe() == "eager so far"
    for _ in range(12):
        eager, _ = steps.step(Replica.of(model, replica.device), state, batch(), rule)
        state, _ = steps.step(replica, state, batch(), rule)
        assert same(state, copies(eager))
    assert replica.describe() == "programs: 1"


def test_evaluation_is_in_evaluation_mode() -> None:
    replica, state = begin(DROPPED)
    first, second = (jobs.evaluate(replica, state, batch()) for _ in range(2))
    assert first == second
    network: nn.Module = replica.bind(state).eval()
    inputs, targets = batch()["inputs"], batch()["targets"]
    assert first.loss == replica.loss(network(inputs), targets).item()


def test_a_quantity_that_has_no_meaning_for_the_model_is_refused() -> None:
    replica, state = begin(NORMALISED)
    with pytest.raises(UnknownQuantity):
        steps.step(replica, state, batch(), state.rule)


@pytest.mark.parametrize("rule", [DiagGGN(), SGD()])
def test_outputs_that_overflow_are_refused(rule: Rule) -> None:
    replica, begun = begin(PLAIN, rule)
    state = begun.loaded({name: p * 1e38 for name, p in begun.parameters.items()})
    before = copies(state)
    with pytest.raises(NonFinite) as caught:
        steps.step(replica, state, batch(), rule)
    assert caught.value.tensor in ("outputs", "loss")
    assert same(state, before)


def test_an_option_beyond_the_parameters_dtype_is_refused() -> None:
    replica, state = begin(PLAIN, SGD(lr=1e300))
    with pytest.raises(InvalidRule, match="lr is 1e"):
        steps.step(replica, state, batch(), state.rule)


def test_new_parameters_that_overflow_are_refused_by_name() -> None:
    replica, state = begin(PLAIN, SGD(lr=3e38))
    before = copies(state)
    with pytest.raises(NonFinite) as caught:
        steps.step(replica, state, batch(scale=1000.0), state.rule)
    assert str(caught.value.tensor).startswith("parameter.")
    assert same(state, before)


def test_values_are_checked_before_anything_is_computed() -> None:
    replica, state = begin(PLAIN)
    wrong = batch()
    wrong["targets"][3] = 3
    with pytest.raises(InvalidBatch, match="targets of sample 3"):
        jobs.evaluate(replica, state, wrong)


def test_loaded_parameters_are_copies_in_the_models_order() -> None:
    replica, state = begin(PLAIN)
    new = {name: tensor + 1 for name, tensor in reversed(state.parameters.items())}
    after = jobs.load(replica, state, new)
    expected = copies(after)
    for tensor in new.values():
        tensor.zero_()
    assert list(after.parameters) == list(state.parameters)
    assert same(after, expected) and after.version == 1 and after.steps == 0


def test_parameters_that_are_not_finite_are_not_loaded() -> None:
    replica, state = begin(PLAIN)
    new = {name: tensor.clone() for name, tensor in state.parameters.items()}
    new["2.bias"][0] = math.nan
    with pytest.raises(NonFinite) as caught:
        jobs.load(replica, state, new)
    assert caught.value.tensor == "2.bias"
