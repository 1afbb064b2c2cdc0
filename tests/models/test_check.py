"""A model that does not work is refused before a server listens, in a line that says why."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from curvserve.engine import evaluate
from curvserve.engine.losses import Likelihood
from curvserve.models import Model, ModelUnfit, SampleSpec, check, find_support
from curvserve.models.dry_run import draw
from curvserve.models.metrics import accuracy
from curvserve.models.support import SERVED

CPU = torch.device("cpu")
GOOD = Model(
    name="good",
    build=lambda: nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)),
    loss=nn.CrossEntropyLoss,
    inputs=SampleSpec(shape=(4,), dtype=torch.float32),
    targets=SampleSpec(shape=(), dtype=torch.int64, minimum=0, maximum=2),
    metrics={"accuracy": accuracy},
)


class Log(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.log()


class Odd(nn.Module):
    def forward(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return outputs.sum()


def frozen() -> nn.Module:
    return nn.Linear(4, 3).requires_grad_(False)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"build": lambda: nn.Linear(5, 3)}, "RuntimeError: mat1 and mat2"),
        ({"build": frozen}, "no parameter that requires a gradient"),
        ({"build": lambda: nn.Sequential(Log(), nn.Linear(4, 3))}, "not finite.*a minimum"),
        ({"loss": nn.MSELoss}, "the loss fails: "),
        ({"loss": Odd}, "Odd has no curvature rule"),
        ({"loss": lambda: nn.CrossEntropyLoss(reduction="none")}, "the loss gives .*0-dim"),
        ({"metrics": {"top5": lambda o, t: o.topk(5)}}, "top5 fails: RuntimeError"),
        ({"metrics": {"mean": lambda o, t: 0.5}}, "mean gives 0.5, expected a finite 0-dim tensor"),
    ],
)
@pytest.mark.filterwarnings("ignore:Using a target size")
def test_a_model_that_does_not_work_is_refused(change: dict[str, object], said: str) -> None:
    with pytest.raises(ModelUnfit, match=f"model 'good': .*{said}"):
        check(replace(GOOD, **change))  # type: ignore[arg-type]  # wrong on purpose


@pytest.mark.parametrize("name", ["", "a b", "-model", "a/b", "m" * 65])
def test_a_name_that_no_session_can_have_is_refused(name: str) -> None:
    with pytest.raises(ModelUnfit, match="cannot be a model's name; expected 1 to 64 letters"):
        check(replace(GOOD, name=name))


def test_a_check_leaves_the_global_generator_alone() -> None:
    before = torch.get_rng_state()
    check(replace(GOOD, build=lambda: nn.Sequential(nn.Dropout(), nn.Linear(4, 3))))
    assert torch.equal(torch.get_rng_state(), before)


def test_made_up_samples_are_what_a_specification_allows() -> None:
    numbers = draw(SampleSpec(shape=(99,), dtype=torch.float64, minimum=-0.5, maximum=2), 3)
    assert (numbers.shape, numbers.dtype) == ((3, 99), torch.float64)
    assert numbers.min() == -0.5 and 1 < numbers.max() <= 2
    classes = draw(SampleSpec(shape=(99,), dtype=torch.int64, minimum=3, maximum=5), 2)
    assert set(classes.flatten().tolist()) == {3, 4, 5}


class OnceOnly(torch.autograd.Function):
    @staticmethod
    def forward(context, x):
        context.save_for_backward(x)
        return x.tanh()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(context, slope):
        return slope / context.saved_tensors[0].cosh().square()


class Once(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return OnceOnly.apply(x)


def gaussian(outputs: Tensor) -> torch.distributions.Distribution:
    return torch.distributions.Normal(outputs, 1.0)


LINEAR = nn.Linear(5, 3)
REGRESSION = {"targets": SampleSpec(shape=(3,), dtype=torch.float32), "metrics": {}}


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({}, ""),
        ({"loss": nn.MSELoss, **REGRESSION}, ""),
        ({"loss": nn.L1Loss, **REGRESSION}, None),
        ({"loss": lambda: Likelihood(gaussian), **REGRESSION}, None),
        (
            {"build": lambda: nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5), LINEAR)},
            "BatchNorm1d",
        ),
        (
            {"build": lambda: nn.Sequential(nn.Linear(4, 5), Once(), LINEAR)},
            "SecondDerivativeError",
        ),
        ({"build": lambda: nn.Sequential(nn.Linear(4, 5), nn.Dropout(), LINEAR)}, ""),
    ],
)
def test_what_is_told_to_be_supported_is_what_can_be_computed(
    change: dict[str, object], expected: str | None
) -> None:
    """Every quantity, by itself, against the word of its family's cheapest."""
    model = replace(GOOD, **change)  # type: ignore[arg-type]  # wrong on purpose
    network, loss = check(model)
    support = find_support(model, network, loss, CPU)
    inputs, targets = draw(model.inputs, 3), draw(model.targets, 3)

    def works(quantity: str) -> bool:
        try:
            evaluate(network, loss, inputs, targets, [quantity], seed=0)
        except RuntimeError:
            return False
        return True

    assert support.quantities == tuple(name for name in SERVED if works(name))
    assert {*support.quantities, *support.refused} == set(SERVED)
    if expected is not None:
        assert bool(support.refused) == bool(expected)
        assert all(expected in reason for reason in support.refused.values())
        assert expected in str(support)
