"""A layer kind and a quantity of one's own, each one small file."""

from collections.abc import Iterator

import pytest
import torch
from torch import nn

from curvserve.engine import evaluate, layers
from curvserve.engine.extensions import BatchGrad, DiagGGNExact, DiagHessian
from tests.engine import reference
from tests.engine.additions.largest_grad import LargestGrad
from tests.engine.additions.scale import Scale, ScaleRule
from tests.engine.test_quantities import collected, largest_error, run
from tests.engine.zoo import ZOO, Case, classes, make


@pytest.fixture
def registered() -> Iterator[None]:
    layers.register(ScaleRule())
    yield
    del layers.RULES[Scale]


def case() -> Case:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 5), Scale(5), nn.Tanh(), nn.Linear(5, 4)).double()
    return Case(model, torch.randn(3, 6).double(), classes(3), nn.CrossEntropyLoss())


def test_a_layer_kind_is_one_rule(registered: None) -> None:
    made = case()
    assert isinstance(layers.find(made.model[1]), ScaleRule)
    run(made, BatchGrad(), DiagGGNExact(), DiagHessian())
    arguments = made.model, made.loss, made.inputs, made.targets
    assert largest_error(collected(made, "grad_batch"), reference.batch_grad(*arguments)) < 1e-12
    assert largest_error(collected(made, "diag_ggn_exact"), reference.diag_ggn(*arguments)) < 1e-12
    blocks = reference.hessian_blocks(*arguments)
    found = {k: v.flatten() for k, v in collected(made, "diag_h").items()}
    assert largest_error(found, {k: b.diagonal() for k, b in blocks.items()}) < 1e-11


@pytest.mark.parametrize("name", ZOO)
def test_a_quantity_is_one_function_of_the_rows(name: str) -> None:
    made = make(name)
    run(made, LargestGrad())
    rows = reference.batch_grad(made.model, made.loss, made.inputs, made.targets, made.samples)
    expected = {k: v.flatten(1).abs().amax(1) for k, v in rows.items()}
    assert largest_error(collected(made, "largest_grad"), expected) < 1e-12
    arguments = made.model, made.loss, made.inputs, made.targets, [LargestGrad()]
    whole = evaluate(*arguments).quantities["largest_grad"]
    assert largest_error(whole, expected) < 1e-12
