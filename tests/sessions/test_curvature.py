"""What is told of a step's curvature, against float64 and numpy."""

import numpy as np
import pytest
import torch
from curvserve_client.rules import KFAC, SGD, DiagGGN, Quantities, Rule, RuleState, Sophia
from torch import Tensor, nn

from curvserve.sessions import curvature, steps
from curvserve.sessions.curvature import HIGH, LOW, SAMPLE_EACH, STEP, SeenStep, diagonals, summary
from curvserve.sessions.replica import EAGER
from tests.sessions.small import PLAIN, batch, begin, classifier


def seen(
    diagonal: dict[str, Tensor] | None, damping: float | None = 1.0, scale: float = 1.01
) -> SeenStep:
    """A step that multiplies every parameter, with a curvature."""
    shapes = {name: t.shape for name, t in (diagonal or {"p": torch.ones(3)}).items()}
    before = {name: torch.ones(shape) for name, shape in shapes.items()}
    after = {name: scale * p for name, p in before.items()}
    quantities = {} if diagonal is None else {"diag_ggn_mc": diagonal}
    update = {} if damping is None else {"damping": damping}
    answer = {"version": 4, "update": update}
    return SeenStep(before, after, quantities, RuleState(), answer, 12.5)


def spread_out(*shape: int) -> Tensor:
    """Positive numbers over many decades, some of them zero."""
    generator = torch.Generator().manual_seed(0)
    values = 10 ** (torch.randn(shape, generator=generator) * 2 - 4)
    values[torch.rand(shape, generator=generator) < 0.2] = 0
    return values


def test_quantiles_shares_and_histogram_are_those_of_numpy() -> None:
    h = spread_out(70, 90)
    (layer,) = summary(seen({"w": h}, damping=1e-4))["layers"]
    found, exact = layer["curvature"], h.double().numpy().ravel()
    assert layer["size"] == h.numel() and layer["name"] == "w"
    for told, level in zip(found["quantiles"], (0.1, 0.5, 0.9), strict=True):
        assert told == pytest.approx(np.quantile(exact, level, method="nearest"), rel=1e-3)
    assert found["damped"] == pytest.approx((exact < 1e-4).mean(), abs=1e-4)
    assert found["zero"] == pytest.approx((exact == 0).mean(), abs=1e-4)
    logs = np.clip(np.log10(exact[exact > 0]), LOW, HIGH - 1e-9)
    counts, _ = np.histogram(logs, bins=np.arange(LOW, HIGH + STEP, STEP))
    whole = np.zeros(len(counts))
    whole[found["first"] : found["first"] + len(found["shares"])] = found["shares"]
    assert np.abs(whole - 1000 * counts / len(exact)).max() <= 0.6  # whole thousandths
    assert found["shares"][0] > 0 or counts[found["first"]] > 0


def test_values_beyond_the_bins_are_in_the_outermost_and_zeros_in_none() -> None:
    (layer,) = summary(seen({"w": torch.tensor([0.0, 1e-20, 1e20, 1e20])}))["layers"]
    found = layer["curvature"]
    assert (found["first"], found["zero"]) == (0, 0.25)
    assert found["shares"][0] == 250 and found["shares"][-1] == 500
    assert len(found["shares"]) == round((HIGH - LOW) / STEP)


def test_a_curvature_of_zeros_alone_is_told() -> None:
    told = summary(seen({"w": torch.zeros(5)}))
    (layer,) = told["layers"]
    assert layer["curvature"]["zero"] == told["total"]["zero"] == 1.0
    assert told["total"]["quantiles"] == [0.0, 0.0, 0.0] and layer["curvature"]["damped"] == 1.0


def test_the_total_is_of_all_coordinates_whatever_layer_they_are_in() -> None:
    layers = {"large": spread_out(4000), "small": spread_out(40) * 1e3}
    total = summary(seen(layers, damping=1e-3))["total"]
    exact = torch.cat(list(layers.values())).double().numpy()
    assert total["damped"] == pytest.approx((exact < 1e-3).mean(), abs=1e-4)
    assert total["zero"] == pytest.approx((exact == 0).mean(), abs=1e-4)
    for told, level in zip(total["quantiles"], (0.1, 0.5, 0.9), strict=True):
        wanted = np.quantile(exact, level, method="nearest")
        assert told == wanted == 0 or abs(np.log10(told) - np.log10(wanted)) <= STEP


def test_the_update_is_measured_against_the_parameter() -> None:
    (layer,) = summary(seen({"w": torch.ones(6)}, scale=1.03))["layers"]
    assert layer["update_ratio"] == pytest.approx(0.03, rel=1e-3)
    step = seen(None)
    step.before["p"].zero_()
    (layer,) = summary(step)["layers"]
    assert layer["update_ratio"] is None and layer["curvature"] is None


def test_a_large_layer_is_sampled_evenly_across_rows_and_columns() -> None:
    # a curvature that depends on the column only, which a whole stride would meet again and again
    columns, rows = 64, 4096
    h = (10.0 ** -torch.arange(columns)).repeat(rows, 1) + 1e-11
    assert h.numel() > 10 * SAMPLE_EACH
    (layer,) = summary(seen({"w": h}, damping=3e-4))["layers"]
    assert layer["size"] == h.numel()
    assert layer["curvature"]["damped"] == pytest.approx(1 - 4 / columns, abs=0.01)


def test_memory_that_is_laid_out_otherwise_makes_no_difference() -> None:
    h = spread_out(8, 3, 5, 5)
    assert summary(seen({"w": h})) == summary(
        seen({"w": h.contiguous(memory_format=torch.channels_last)})
    )


def test_a_rule_without_damping_or_curvature_is_told_so() -> None:
    told = summary(seen({"w": torch.ones(2)}, damping=None))
    assert told["damping"] is None and told["total"]["damped"] is None
    assert summary(seen(None))["total"] is None


@pytest.mark.parametrize(
    ("rule", "parameters"),
    [
        (DiagGGN(), 4),
        (DiagGGN(beta2=0.9), 4),
        (DiagGGN(curvature_interval=3), 4),
        (Sophia(), 4),
        (KFAC(), 4),
        (SGD(), 0),
    ],
)
def test_every_rule_shows_the_curvature_that_it_divided_by(rule: Rule, parameters: int) -> None:
    replica, state = begin(PLAIN, rule)
    for _ in range(2):
        found: list[Quantities] = []
        before = state
        state, result = steps.step(replica, state, batch(), rule, found.append)
    shown = diagonals(found[0], state.rule_state)
    assert len(shown) == parameters
    told = curvature.summary(
        SeenStep(
            before.parameters, state.parameters, found[0], state.rule_state, result.to_dict(), 0.0
        )
    )
    assert (told["total"] is None) == (parameters == 0)
    assert [layer["name"] for layer in told["layers"]] == list(state.parameters)


def test_what_a_step_hands_over_is_never_written_to_again() -> None:
    wide = classifier(
        "wide", lambda: nn.Sequential(nn.Linear(5, 600), nn.Linear(600, 600), nn.Linear(600, 5))
    )
    replica, state = begin(wide)  # a parameter above the size from which memory is used again
    held: list[tuple[Tensor, Tensor]] = []

    def hold(quantities: Quantities) -> None:
        tensors = [*quantities["diag_ggn_mc"].values(), *state.parameters.values()]
        held.extend((tensor, tensor.clone()) for tensor in tensors)

    for _ in range(14):  # eager ones, and those of a program
        state, _ = steps.step(replica, state, batch(), state.rule, hold)
    assert replica.describe() != EAGER
    assert all(torch.equal(tensor, copy) for tensor, copy in held)


def test_kronecker_factors_are_shown_as_the_diagonal_of_their_product() -> None:
    b, a = torch.rand(30, 30), torch.rand(20, 20)
    memory = RuleState(tensors={"outer": {"w": b, "v": b}, "inner": {"w": a}})
    before = {"w": torch.ones(30, 20), "v": torch.ones(30)}
    answer = {"version": 1, "update": {"damping": 0.1}}
    told = summary(SeenStep(before, before, {}, memory, answer, 0.0))
    for layer, whole in zip(
        told["layers"], (torch.kron(b, a).diagonal(), b.diagonal()), strict=True
    ):
        wanted = summary(seen({"p": whole}, damping=0.1))["layers"][0]["curvature"]
        assert layer["curvature"] == wanted
