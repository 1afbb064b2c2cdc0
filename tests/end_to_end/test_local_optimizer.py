"""The example's optimizer in this process: the seed's loop, and what it refuses."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from curvserve_client.errors import InvalidRule
from curvserve_client.rules import make_rule
from torch import Tensor, nn

from curvserve.data import load_digits, normalise
from curvserve.engine import backpack, extend
from curvserve.engine.extensions import DiagGGNMC
from curvserve.optim import DiagGGNOptimizer


def load_weights(path: Path) -> Any:
    """Read a file as torch reads what it does not trust: plain values and tensors alone."""
    return torch.load(path, weights_only=True)  # noqa: TID251 # runs no code


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
        curvature = parameter.diag_ggn_mc.double()  # type: ignore[attr-defined]  # an extension puts it there
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


EVERYTHING: dict[str, float] = {
    "lr": 0.1,
    "damping": 1.0,
    "momentum": 0.9,
    "beta2": 0.9,
    "curvature_interval": 2,
    "exponent": 0.5,
    "clip": 1.0,
    "kl_clip": 0.1,
    "weight_decay": 0.01,
    "l2": 0.01,
    "quantiles": True,
}


class Training:
    """A small network of one dtype, its optimizer, and batches that depend on the step alone."""

    def __init__(self, dtype: torch.dtype = torch.float32, **options: float) -> None:
        with torch.random.fork_rng():
            torch.manual_seed(0)
            model = nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 3)).to(dtype)
        self.dtype, self.model, self.loss = dtype, extend(model), extend(nn.CrossEntropyLoss())
        self.optimizer = DiagGGNOptimizer(model.parameters(), **options)

    def backward(self, step: int) -> Tensor:
        generator = torch.Generator().manual_seed(step)
        x = torch.randn(8, 6, generator=generator).to(self.dtype)
        y = torch.randint(3, (8,), generator=generator)
        self.optimizer.zero_grad()
        with torch.random.fork_rng(), backpack(DiagGGNMC()):
            torch.manual_seed(step)
            value: Tensor = self.loss(self.model(x), y)
            value.backward()
        return value

    def step(self, step: int) -> None:
        self.optimizer.step(lambda: self.backward(step))

    def parameters(self) -> dict[str, Tensor]:
        return {name: p.detach().clone() for name, p in self.model.named_parameters()}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("trials", [0, 2])
def test_training_resumed_from_a_file_goes_on_with_the_same_bits(
    tmp_path: Path, dtype: torch.dtype, trials: int
) -> None:
    options = EVERYTHING | {"damping_interval": trials}
    straight, broken = Training(dtype, **options), Training(dtype, **options)
    for step in range(9):
        if step == 5:
            torch.save(  # noqa: TID251  # as a user of torch does
                [broken.model.state_dict(), broken.optimizer.state_dict()], tmp_path / "file"
            )
            broken = Training(dtype)
            saved = load_weights(tmp_path / "file")
            broken.model.load_state_dict(saved[0])
            broken.optimizer.load_state_dict(saved[1])
        straight.step(step)
        broken.step(step)
    assert straight.optimizer.metrics[0].keys() == broken.optimizer.metrics[0].keys()
    found = broken.parameters()
    assert all(torch.equal(p, found[name]) for name, p in straight.parameters().items())


def test_the_local_optimizer_is_the_rule_with_every_option() -> None:
    options = EVERYTHING | {"damping_interval": 2}
    rule, training = make_rule("diag_ggn", options), Training(**options)
    twin = Training(**options)
    parameters, state = training.parameters(), rule.start(training.parameters())

    def loss_at(tried: Mapping[str, Tensor]) -> float:
        twin.model.load_state_dict(dict(tried))
        return twin.backward(step).item()

    for step in range(8):
        loss = loss_at(parameters)
        quantities = {
            "grad": {name: p.grad for name, p in twin.model.named_parameters()},
            "diag_ggn_mc": {name: p.diag_ggn_mc for name, p in twin.model.named_parameters()},
        }
        update = rule.update(parameters, quantities, state, loss=loss, loss_at=loss_at)
        parameters, state = update.parameters, update.state
        training.step(step)
        found = training.parameters()
        assert all(torch.equal(p, found[name]) for name, p in parameters.items())
        assert training.optimizer.metrics[0].keys() == update.metrics.keys()


def test_a_trial_leaves_the_gradients_of_the_step_that_was_tried() -> None:
    training, twin = Training(lr=1.0, damping_interval=1), Training()
    twin.backward(0)
    training.step(0)
    for one, other in zip(training.model.parameters(), twin.model.parameters(), strict=True):
        assert one.grad is not None and other.grad is not None
        assert torch.equal(one.grad, other.grad)
        assert torch.equal(one.diag_ggn_mc, other.diag_ggn_mc)


def test_a_refused_step_leaves_the_parameters_alone() -> None:
    training = Training(lr=1e4, damping_interval=1)
    before = training.parameters()
    training.step(0)
    assert training.optimizer.metrics[0]["accepted"] == 0.0
    assert all(torch.equal(p, before[name]) for name, p in training.parameters().items())
    training.step(0)
    assert training.optimizer.metrics[0]["damping"] == pytest.approx(1 / 0.95)


def test_a_trial_needs_a_closure_and_a_single_group() -> None:
    training = Training(damping_interval=5)
    training.backward(0)
    with pytest.raises(RuntimeError, match=r"call step\(closure\)"):
        training.optimizer.step()
    training.optimizer.add_param_group({"params": [nn.Parameter(torch.ones(1))]})
    with pytest.raises(InvalidRule, match="expected a single group"):
        training.step(0)


def test_between_two_computations_of_the_curvature_backward_needs_no_extension() -> None:
    training = Training(curvature_interval=3)
    training.step(0)
    for parameter in training.model.parameters():
        del parameter.diag_ggn_mc
    before = training.parameters()
    training.loss(training.model(torch.ones(2, 6)), torch.tensor([0, 1])).backward()
    training.optimizer.step()
    assert not any(torch.equal(p, before[name]) for name, p in training.parameters().items())


def test_groups_have_options_and_a_memory_of_their_own() -> None:
    model, loss = problem()
    weight, bias = model.parameters()
    groups = [{"params": [weight], "momentum": 0.9}, {"params": [bias], "lr": 0.0}]
    optimizer = DiagGGNOptimizer(groups)
    with backpack(DiagGGNMC()):
        loss(model(torch.ones(2, 784)), torch.tensor([1, 2])).backward()
    before = bias.detach().clone()
    optimizer.step()
    assert optimizer.state[weight].keys() == {"momentum"} and bias not in optimizer.state
    assert torch.equal(bias, before)


def test_options_that_do_not_exist_are_refused() -> None:
    with pytest.raises(InvalidRule, match=r"no option 'nesterov'; expected lr, damping, momentum"):
        DiagGGNOptimizer(problem()[0].parameters(), nesterov=True)
    with pytest.raises(InvalidRule, match="momentum is 1"):
        DiagGGNOptimizer([{"params": problem()[0].parameters(), "momentum": 1.0}])


def test_the_state_of_an_older_optimizer_loads() -> None:
    training = Training()
    state = training.optimizer.state_dict()
    for group in state["param_groups"]:
        for option in group.keys() - {"params", "lr", "damping"}:
            del group[option]
    training.optimizer.load_state_dict(state)
    training.step(0)
