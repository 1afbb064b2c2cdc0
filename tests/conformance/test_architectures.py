"""Gradients per sample and the exact diagonal of real architectures, against brute force.

The reference takes one derivative for each sample and eigenvector of its loss Hessian, by plain
autograd on the model as it is.
"""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from curvserve.engine import evaluate
from tests.conformance.architectures import QUICK, SAMPLES, SLOW, Built

Numbers = dict[str, Tensor]


def reference(model: nn.Module, loss: nn.Module, x: Tensor, y: Tensor) -> tuple[Numbers, Numbers]:
    """The gradients of the samples, and the diagonal of the Gauss-Newton matrix."""
    parameters = {n: p for n, p in model.named_parameters() if p.requires_grad}
    outputs = model(x)
    f = outputs.detach().requires_grad_()
    (slope,) = torch.autograd.grad(loss(f, y), f, create_graph=True)

    def pull(cotangent: Tensor) -> list[Tensor]:
        found = torch.autograd.grad(
            outputs, list(parameters.values()), cotangent, retain_graph=True, allow_unused=True
        )
        return [
            torch.zeros_like(p) if g is None else g
            for p, g in zip(parameters.values(), found, strict=True)
        ]

    gradients: dict[str, list[Tensor]] = {n: [] for n in parameters}
    diagonal = {n: torch.zeros_like(p) for n, p in parameters.items()}
    for n in range(len(x)):
        own = torch.zeros_like(f)
        own[n] = slope[n].detach()
        for name, g in zip(parameters, pull(own), strict=True):
            gradients[name].append(g)
        hessian = torch.stack(
            [
                torch.autograd.grad(unit, f, retain_graph=True)[0][n].flatten()
                for unit in slope[n].flatten()
            ]
        )
        for value, vector in zip(*(t.unbind(-1) for t in torch.linalg.eigh(hessian)), strict=True):
            column = torch.zeros_like(f)
            column[n] = vector.view_as(f[n])
            for name, g in zip(parameters, pull(column), strict=True):
                diagonal[name] += value * g.square()
    return {name: torch.stack(rows) for name, rows in gradients.items()}, diagonal


def largest_error(found: Numbers, expected: Numbers) -> float:
    """Relative to each parameter's largest entry, or a millionth of the largest of all."""
    assert found.keys() == expected.keys()
    least = 1e-6 * max(float(v.abs().max()) for v in expected.values())
    return max(
        float((found[k] - v).abs().max()) / max(float(v.abs().max()), least)
        for k, v in expected.items()
    )


def check(build: Callable[[], Built]) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model, x = build()
        model = model.double()
        x = x.double() if x.is_floating_point() else x
        shape = model(x).shape
        y = torch.randint(shape[1], (SAMPLES, *shape[2:]))
    loss = nn.CrossEntropyLoss()
    rows, diagonal = reference(model, loss, x, y)
    found = evaluate(model, loss, x, y, ["grad_batch", "diag_ggn_exact"]).quantities
    assert any(bool(v.any()) for v in diagonal.values())
    assert largest_error(found["grad_batch"], rows) < 1e-12
    assert largest_error(found["diag_ggn_exact"], diagonal) < 1e-12


@pytest.mark.parametrize("name", QUICK)
def test_small_architectures(name: str) -> None:
    check(QUICK[name])


@pytest.mark.campaign
@pytest.mark.parametrize("name", SLOW)
def test_whole_architectures(name: str) -> None:
    check(SLOW[name])
