"""Each way of summing squared rows is the plain one; columns go back together where they can."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from curvserve.engine import backpack, evaluate, extend
from curvserve.engine.extensions import DiagGGNExact
from curvserve.engine.layers import contractions
from curvserve.engine.native import library


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).double()


@contextmanager
def own_kernel(compiled: bool) -> Iterator[None]:
    """A block with our own kernel, where there is one, or without."""
    with pytest.MonkeyPatch.context() as patch:
        if not compiled:
            patch.setattr(library, "instructions", lambda: None)
        yield


@pytest.mark.parametrize("compiled", [True, False])
@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize(
    "positions, inputs, outputs",
    [(1, 5, 3), (1, 300, 200), (2, 300, 200), (4, 300, 200), (5, 300, 200), (4, 5, 3), (9, 40, 30)],
)
def test_every_way_is_the_plain_one(
    positions: int, inputs: int, outputs: int, count: int, compiled: bool
) -> None:
    a = drawn(6, positions, inputs)
    columns = [drawn(6, positions, outputs, seed=1 + v) for v in range(count)]
    rows = torch.stack([torch.einsum("nto,nti->noi", s, a) for s in columns])
    with own_kernel(compiled):
        found = contractions.square_sum(a, columns)
    torch.testing.assert_close(found, rows.square().sum((0, 1)), rtol=1e-12, atol=1e-12)


@settings(deadline=None)
@given(st.data())
def test_a_window_leaves_out_taps_that_see_padding_only(data: Any) -> None:
    draw = data.draw
    size, kernel = draw(st.integers(1, 4)), draw(st.integers(1, 5))
    padding, stride = draw(st.integers(0, 4)), draw(st.integers(1, 3))
    dilation = draw(st.integers(1, 2))
    if size + 2 * padding < dilation * (kernel - 1) + 1:
        return
    layer = nn.Conv2d(2, 3, kernel, stride, padding, dilation).double()
    x = drawn(4, 2, size, size)
    y = drawn(*layer(x).flatten(1).shape, seed=1)
    model, loss = nn.Sequential(layer, nn.Flatten()), nn.MSELoss(reduction="sum")
    expected = torch.zeros_like(layer.weight)
    for n in range(len(x)):
        outputs = layer(x[n : n + 1]).flatten()
        each = torch.eye(len(outputs), dtype=outputs.dtype)
        (rows,) = torch.autograd.grad(outputs, layer.weight, each, is_grads_batched=True)
        expected += 2 * rows.square().sum(0)
    for compiled in (True, False):
        with own_kernel(compiled):
            found = evaluate(model, loss, x, y, ["diag_ggn_exact"]).quantities["diag_ggn_exact"]
        torch.testing.assert_close(found["0.weight"], expected, rtol=1e-12, atol=1e-12)


class Doubled(torch.autograd.Function):
    """Has no rule for several cotangents at a time."""

    calls: list[tuple[int, ...]] = []

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return 2 * x

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        Doubled.calls.append(tuple(gradient.shape))
        return 2 * gradient


class Doubling(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = Doubled.apply(x)
        return found


@pytest.mark.parametrize("between", [nn.Identity(), Doubling()], ids=["together", "one by one"])
def test_columns_go_back_together_where_every_operation_can(between: nn.Module) -> None:
    Doubled.calls.clear()
    model = extend(nn.Sequential(nn.Linear(4, 5), between, nn.Tanh(), nn.Linear(5, 3)).double())
    loss = extend(nn.CrossEntropyLoss())
    x, y = drawn(6, 4), torch.arange(6) % 3
    with backpack(DiagGGNExact()):
        loss(model(x), y).backward()
    logits = model(x)
    probabilities = logits.softmax(1)
    expected = {p: torch.zeros_like(p) for p in model.parameters()}
    for n in range(6):
        rows = [
            torch.autograd.grad(logits[n, k], list(expected), retain_graph=True) for k in range(3)
        ]
        p = probabilities[n].detach()
        hessian = (p.diag() - p.outer(p)) / 6
        for i, parameter in enumerate(expected):
            stacked = torch.stack([row[i] for row in rows])
            expected[parameter] += torch.einsum("k...,kl,l...->...", stacked, hessian, stacked)
    for parameter, diagonal in expected.items():
        torch.testing.assert_close(parameter.diag_ggn_exact, diagonal)  # type: ignore[attr-defined]  # an extension puts it there
