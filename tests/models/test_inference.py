"""Specifications that their author did not write, and what is said where none can be inferred."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from curvserve.models import Model, ModelUnfit, SampleSpec, check

Build = Callable[[], nn.Module]


def infer(
    loss: Build, build: Build | None = None, inputs: SampleSpec | Tensor | None = None
) -> Model:
    example = torch.zeros(1, 4) if inputs is None else inputs
    return Model.infer("made", build or (lambda: nn.Linear(4, 3)), loss, example)


@pytest.mark.parametrize(
    ("loss", "dtype", "shape", "bounds"),
    [
        (nn.CrossEntropyLoss, torch.int64, (), (0, 2)),
        (nn.NLLLoss, torch.int64, (), (0, 2)),
        (nn.MSELoss, torch.float32, (3,), (None, None)),
        (nn.L1Loss, torch.float32, (3,), (None, None)),
        (nn.SmoothL1Loss, torch.float32, (3,), (None, None)),
        (nn.HuberLoss, torch.float32, (3,), (None, None)),
        (nn.BCEWithLogitsLoss, torch.float32, (3,), (0, 1)),
        (nn.PoissonNLLLoss, torch.float32, (3,), (0, None)),
    ],
)
def test_targets_follow_from_the_outputs_and_the_loss(
    loss: Build,
    dtype: torch.dtype,
    shape: tuple[int, ...],
    bounds: tuple[float | None, float | None],
) -> None:
    model = infer(loss)
    assert (model.inputs.shape, model.inputs.dtype) == ((4,), torch.float32)
    assert (model.targets.shape, model.targets.dtype) == (shape, dtype)
    assert (model.targets.minimum, model.targets.maximum) == bounds
    check(model)


def test_a_cross_entropy_over_positions_has_a_target_at_each() -> None:
    model = infer(nn.CrossEntropyLoss, lambda: nn.Conv1d(2, 5, 1), torch.zeros(1, 2, 7))
    assert (model.targets.shape, model.targets.maximum) == ((7,), 4)
    check(model)


def test_integers_are_inferred_from_with_their_range() -> None:
    tokens = SampleSpec(shape=(6,), dtype=torch.int64, minimum=0, maximum=9)
    model = infer(nn.MSELoss, lambda: nn.Embedding(10, 2), tokens)
    assert model.inputs is tokens and model.targets.shape == (6, 2)
    check(model)


def test_integers_without_their_range_are_told_what_to_write() -> None:
    with pytest.raises(ModelUnfit, match=r"SampleSpec\(shape=\(6,\), dtype=torch.int64, minimum=0"):
        infer(nn.MSELoss, lambda: nn.Embedding(10, 2), torch.zeros(1, 6, dtype=torch.int64))


class Doubled(nn.Module):
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return x, x


@pytest.mark.parametrize(
    ("loss", "build", "inputs", "said"),
    [
        (nn.GaussianNLLLoss, None, None, "the loss is GaussianNLLLoss, the outputs are .2, 3."),
        (nn.CrossEntropyLoss, lambda: nn.Flatten(0), None, r"2 samples give outputs \[8\]"),
        (nn.MSELoss, None, torch.tensor(1.0), "no axis of samples"),
        (nn.MSELoss, None, torch.zeros(1, 5), "RuntimeError: mat1 and mat2 shapes"),
        (nn.MSELoss, Doubled, None, "gives tuple, expected one tensor"),
        (nn.MSELoss, lambda: 1 / 0, None, r"build\(\) failed: ZeroDivisionError"),
        (lambda: 3, None, None, r"loss\(\) returns a int, expected a torch.nn.Module"),
    ],
)
def test_what_cannot_be_inferred_is_said(
    loss: Build, build: Build | None, inputs: Tensor | None, said: str
) -> None:
    with pytest.raises(ModelUnfit, match=f"model 'made': .*{said}"):
        infer(loss, build, inputs)


def test_inferring_takes_no_number_from_the_global_generator() -> None:
    before = torch.get_rng_state()
    infer(nn.CrossEntropyLoss)
    assert torch.equal(torch.get_rng_state(), before)
