"""A layer kind and a quantity of one's own, each a few lines in one place."""

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn

from curvserve.engine import layers
from curvserve.engine.extensions import BatchGrad, DiagGGNExact, DiagHessian
from curvserve.engine.layers import LayerRule
from curvserve.engine.quantities import GradientQuantity
from curvserve.engine.rows import Rows
from tests.engine import reference
from tests.engine.test_quantities import collected, largest_error, run
from tests.engine.zoo import Case, classes


class Scale(nn.Module):
    """y = w * a."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(width))

    def forward(self, x: Tensor) -> Tensor:
        return self.weight * x


class ScaleRule(LayerRule):
    kinds = (Scale,)
    parameters = ("weight",)

    def rows(self, module: nn.Module, name: str, a: Tensor, s: Tensor) -> Tensor:
        return (a * s).reshape(len(s), -1, s.shape[-1]).sum(1)


class LargestGrad(GradientQuantity):
    """The largest absolute entry of each sample's gradient, [N]."""

    savefield = "largest_grad"
    per_sample = 0

    def reduce(self, rows: Rows) -> Tensor:
        return rows.dense().flatten(1).abs().amax(1)


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


def test_a_quantity_is_one_function_of_the_rows() -> None:
    made = case()
    run(made, LargestGrad())
    rows = reference.batch_grad(made.model, made.loss, made.inputs, made.targets)
    expected = {k: v.flatten(1).abs().amax(1) for k, v in rows.items()}
    assert largest_error(collected(made, "largest_grad"), expected) < 1e-12
