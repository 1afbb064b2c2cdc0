"""The example's optimizer in this process: the seed's loop, and what it refuses."""

import pytest
import torch
from curvserve_client.errors import InvalidRule
from torch import nn

from curvserve.data import load_digits, normalise
from curvserve.engine import backpack, extend
from curvserve.engine.extensions import DiagGGNMC
from curvserve.optim import DiagGGNOptimizer


def problem() -> tuple[nn.Module, nn.Module]:
    return extend(nn.Sequential(nn.Flatten(), nn.Linear(784, 10))), extend(nn.CrossEntropyLoss())


def test_the_examples_loop_updates_by_gradient_over_curvature_plus_damping() -> None:
    model, loss = problem()
    images, labels = load_digits("train")
    optimizer = DiagGGNOptimizer(model.parameters(), lr=0.5, damping=0.25)
    before = [parameter.detach().double() for parameter in model.parameters()]
    with backpack(DiagGGNMC()):
        loss(model(normalise(images[:16])), labels[:16]).backward()
    optimizer.step()
    for old, parameter in zip(before, model.parameters(), strict=True):
        assert parameter.grad is not None
        curvature = parameter.diag_ggn_mc.double()  # type: ignore[attr-defined]
        expected = old - 0.5 * parameter.grad.double() / (curvature + 0.25)
        torch.testing.assert_close(parameter.detach().double(), expected, rtol=1e-6, atol=1e-8)


def test_a_gradient_without_curvature_is_refused_and_nothing_moves() -> None:
    model, loss = problem()
    loss(model(torch.ones(2, 784)), torch.tensor([1, 2])).backward()
    before = [parameter.detach().clone() for parameter in model.parameters()]
    optimizer = DiagGGNOptimizer(model.parameters())
    with pytest.raises(RuntimeError, match=r"with backpack\(DiagGGNMC\(\)\)"):
        optimizer.step()
    for old, parameter in zip(before, model.parameters(), strict=True):
        assert torch.equal(old, parameter)


def test_the_closure_runs_first_and_its_loss_is_returned() -> None:
    model, loss = problem()
    optimizer = DiagGGNOptimizer(model.parameters())
    x, y = torch.full((2, 784), 0.05), torch.tensor([1, 1])  # small enough that a step goes down

    def closure() -> float:
        optimizer.zero_grad()
        with backpack(DiagGGNMC()):
            value = loss(model(x), y)
            value.backward()
        return value.item()

    first = optimizer.step(closure)
    assert optimizer.step(closure) < first


def test_a_scheduler_sets_the_learning_rate() -> None:
    model, _ = problem()
    optimizer = DiagGGNOptimizer(model.parameters(), lr=0.4)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1, gamma=0.5)
    optimizer.step()
    scheduler.step()
    assert optimizer.param_groups[0]["lr"] == 0.2


@pytest.mark.parametrize("options", [{"lr": -0.1}, {"damping": 0.0}, {"lr": float("nan")}])
def test_options_out_of_range_are_refused(options: dict[str, float]) -> None:
    with pytest.raises(InvalidRule):
        DiagGGNOptimizer(problem()[0].parameters(), **options)
