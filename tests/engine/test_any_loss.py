"""What is made of the samples' gradients needs no extended loss, and nothing else goes without."""

import gc

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from curvserve.engine import backpack, disable, evaluate, extend
from curvserve.engine.errors import UncoveredParameterError, UnsupportedLossError
from curvserve.engine.extensions import (
    HMP,
    BatchGrad,
    BatchL2Grad,
    DiagGGNExact,
    DiagGGNMC,
    SumGradSquared,
    Variance,
)
from tests.engine import reference
from tests.engine.test_quantities import collected, largest_error
from tests.engine.zoo import Case, Wrapped, classes, make

FIRST_ORDER = (BatchGrad(), BatchL2Grad(), SumGradSquared(), Variance())


def left_on(model: nn.Module) -> set[str]:
    return {name for p in model.parameters() for name in vars(p)}


def small() -> Case:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 4)).double()
    return Case(extend(model), torch.randn(5, 3).double(), classes(5), nn.CrossEntropyLoss())


@pytest.mark.parametrize(
    "name",
    ["seed_cnn", "transformer_encoder_time_first", "tied_weights", "recurrent", "segmentation"],
)
def test_the_numbers_are_those_of_an_extended_loss(name: str) -> None:
    case = make(name)
    model = extend(case.model)
    with backpack(*FIRST_ORDER):
        case.loss(model(case.inputs), case.targets).backward()
    rows = reference.batch_grad(case.model, case.loss, case.inputs, case.targets)
    assert largest_error(collected(case, "grad_batch"), rows) < 1e-12
    norms = {k: v.flatten(1).square().sum(1) for k, v in rows.items()}
    assert largest_error(collected(case, "batch_l2"), norms) < 1e-12
    found = evaluate(
        model, case.loss, case.inputs, case.targets, [e.savefield for e in FIRST_ORDER]
    )
    for field, expected in found.quantities.items():
        assert largest_error(collected(case, field), expected) < 1e-12


def test_rows_of_the_jacobian_one_output_unit_after_the_other() -> None:
    case = small()
    outputs = case.model(case.inputs)
    expected = reference.jacobian(outputs, list(case.model.parameters()))
    for unit in range(4):
        with backpack(BatchGrad(), retain_graph=True):
            outputs[:, unit].sum().backward(retain_graph=True)
        for p, rows in zip(case.model.parameters(), expected, strict=True):
            torch.testing.assert_close(
                p.grad_batch, rows.view(5, 4, *p.shape)[:, unit], rtol=1e-12, atol=1e-14
            )


def test_a_loss_of_two_results_of_which_one_is_extended() -> None:
    class TwoHeads(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 4), nn.Tanh())
            self.first, self.second = nn.Linear(4, 3), nn.Linear(4, 2)

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            h = self.body(x)
            return self.first(h), self.second(h)

    torch.manual_seed(0)
    model, loss = extend(TwoHeads().double()), extend(nn.CrossEntropyLoss())
    x, y = torch.randn(5, 3).double(), classes(5, 3)

    def value() -> Tensor:
        first, second = model(x)
        return loss(first, y) + F.mse_loss(second, torch.zeros_like(second))

    with backpack(BatchGrad()):
        value().backward()
    for p in model.parameters():
        torch.testing.assert_close(p.grad_batch.sum(0), p.grad, rtol=1e-12, atol=1e-14)
    with pytest.raises(UnsupportedLossError, match="DiagGGNExact"), backpack(DiagGGNExact()):
        value().backward()
    assert not any(hasattr(p, "diag_ggn_exact") for p in model.parameters())


@pytest.mark.parametrize("extensions", [(DiagGGNMC(),), (BatchGrad(), DiagGGNExact(), HMP())])
def test_curvature_needs_an_extended_loss(extensions: tuple[object, ...]) -> None:
    case = small()
    with (
        pytest.raises(UnsupportedLossError, match=r"call extend\(loss_function\)"),
        backpack(*extensions),
    ):
        F.cross_entropy(case.model(case.inputs), case.targets).backward()
    assert not left_on(case.model)
    with backpack(*extensions):
        extend(case.loss)(case.model(case.inputs), case.targets).backward()
    assert left_on(case.model) == {e.savefield for e in extensions}


def test_samples_that_the_loss_leaves_out_have_zero_rows() -> None:
    case, kept = small(), [0, 3, 4]
    with backpack(BatchGrad()):
        F.cross_entropy(case.model(case.inputs)[kept], case.targets[kept]).backward()
    for p in case.model.parameters():
        assert not p.grad_batch[[1, 2]].any()
        torch.testing.assert_close(p.grad_batch.sum(0), p.grad, rtol=1e-12, atol=1e-14)


def test_a_model_inside_an_extended_model_is_no_end_of_its_own() -> None:
    torch.manual_seed(0)
    body, head = extend(nn.Linear(3, 4)), nn.Linear(4, 2)
    model, loss = extend(nn.Sequential(body, nn.Tanh(), head)), extend(nn.CrossEntropyLoss())
    with backpack(DiagGGNExact()):
        loss(model(torch.randn(5, 3)), classes(5, 2)).backward()
    assert all(p.diag_ggn_exact.shape == p.shape for p in model.parameters())


def test_a_model_that_holds_its_loss() -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body, self.loss = nn.Linear(3, 2), nn.CrossEntropyLoss()

        def forward(self, x: Tensor, y: Tensor) -> Tensor:
            return self.loss(self.body(x), y)

    model = extend(Model())
    with backpack(BatchGrad(), DiagGGNExact()):
        model(torch.randn(5, 3), classes(5, 2)).backward()
    assert model.body.weight.grad_batch.shape == (5, 2, 3)
    assert model.body.weight.diag_ggn_exact.shape == (2, 3)


def test_the_extension_hook_runs_for_the_modules() -> None:
    case, seen = small(), []
    with backpack(BatchGrad(), extension_hook=seen.append):
        F.cross_entropy(case.model(case.inputs), case.targets).backward()
    assert seen == [case.model[2], case.model[0]]


@pytest.mark.filterwarnings("ignore:Using backward.. with create_graph=True")
@pytest.mark.parametrize("penalty_alone", [True, False])
def test_a_derivative_of_the_gradient_has_no_rows(penalty_alone: bool) -> None:
    case = small()
    x = case.inputs.requires_grad_()
    value = F.cross_entropy(case.model(x), case.targets)
    (slope,) = torch.autograd.grad(value, x, create_graph=True)
    penalty = slope.square().sum()
    with (
        pytest.raises(UncoveredParameterError, match="create_graph=True"),
        backpack(BatchGrad()),
    ):
        (penalty if penalty_alone else value + penalty).backward()
    assert not left_on(case.model)
    with backpack(BatchGrad()):
        F.cross_entropy(case.model(x), case.targets).backward()
    assert left_on(case.model) == {"grad_batch"}


def test_nothing_is_caught_of_a_forward_pass_while_disabled() -> None:
    case = small()
    with disable():
        outputs = case.model(case.inputs)
    with pytest.warns(UserWarning, match="no extended loss"), backpack(BatchGrad()):
        F.cross_entropy(outputs, case.targets).backward()


def test_evaluate_inside_a_block_is_not_the_blocks() -> None:
    case = small()
    loss = extend(case.loss)
    with backpack(BatchGrad()):
        evaluate(case.model, loss, case.inputs, case.targets, ["diag_ggn_exact"])
        assert not left_on(case.model)
        loss(case.model(case.inputs), case.targets).backward()
    assert left_on(case.model) == {"grad_batch"}


def test_an_evaluation_inside_the_extension_hook() -> None:
    case, found = small(), []
    loss = extend(case.loss)

    def hook(module: nn.Module) -> None:
        inner = evaluate(case.model, loss, case.inputs, case.targets, ["grad_batch"])
        found.append(inner.quantities["grad_batch"]["0.weight"])

    with backpack(BatchGrad(), extension_hook=hook):
        loss(case.model(case.inputs), case.targets).backward()
    assert len(found) == 3
    assert all(torch.equal(f, case.model[0].weight.grad_batch) for f in found)


def test_no_tensor_outlives_its_pass() -> None:
    case = small()

    def step() -> None:
        with backpack(*FIRST_ORDER):
            F.cross_entropy(case.model(case.inputs), case.targets).backward()
        case.model(case.inputs)

    def live() -> int:
        gc.collect()
        return sum(1 for o in gc.get_objects() if issubclass(type(o), Tensor))

    for _ in range(3):
        step()
    before = live()
    for _ in range(300):
        step()
    assert live() <= before


def test_results_in_a_dictionary_and_a_window_of_them() -> None:
    torch.manual_seed(0)
    model = extend(Wrapped(lambda m, x: {"logits": m.body(x), "input": x}, body=nn.Linear(3, 2)))
    with backpack(BatchGrad()):
        model(torch.randn(5, 3))["logits"][:, :1].square().sum().backward()
    weight = model.body.weight
    torch.testing.assert_close(weight.grad_batch.sum(0), weight.grad)
