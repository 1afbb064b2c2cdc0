"""The definition of every quantity, by plain autograd loops: no code of the engine.

One model on one batch has K outputs (all of them, in one row) and P elements of trained
parameters. Its Jacobian ``[K, P]`` is taken once, and a loss at its output is a gradient ``[K]``
and a matrix ``[K, K]``.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache, cached_property
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from tests.engine.reference import Plain, jacobian, outputs_of, trained


@dataclass(eq=False)
class Dense:
    """A model on a batch of samples, whose outputs lie sample after sample."""

    model: nn.Module
    inputs: Tensor
    samples: int

    def run(self) -> Tensor:
        with sdpa_kernel(SDPBackend.MATH), Plain():
            return outputs_of(self.model, self.inputs)

    @cached_property
    def outputs(self) -> Tensor:
        return self.run().detach()

    @cached_property
    def owner(self) -> Tensor:
        """The sample of each output, ``[K]``."""
        return torch.arange(self.samples).repeat_interleave(self.outputs.numel() // self.samples)

    @cached_property
    def together(self) -> Tensor:
        """1 where two outputs are of one sample, ``[K, K]``."""
        return (self.owner.unsqueeze(0) == self.owner.unsqueeze(1)).double()

    @cached_property
    def places(self) -> dict[str, slice]:
        """Where each parameter lies among the P elements."""
        found, start = {}, 0
        for name, p in trained(self.model).items():
            found[name] = slice(start, start + p.numel())
            start += p.numel()
        return found

    @cached_property
    def jacobian(self) -> Tensor:
        rows = jacobian(self.run(), list(trained(self.model).values()))
        return torch.cat([row.flatten(1) for row in rows], 1)

    def residuals(self, gradient: Tensor) -> Tensor:
        """``d^2 <g_n, f_n> / dp^2`` for each sample ``[N, P, P]``, one derivative at a time."""
        parameters = list(trained(self.model).values())
        outputs, matrices = self.run().flatten(), []
        for n in range(self.samples):
            share = (gradient * outputs)[self.owner == n].sum()
            slope = gradient_of(share, parameters, create_graph=True)
            matrices.append(torch.stack([gradient_of(s, parameters) for s in slope]))
        return torch.stack(matrices)


def gradient_of(value: Tensor, of: list[Any], create_graph: bool = False) -> Tensor:
    """The gradient of a scalar, in one row; zero where it does not depend on something."""
    if not value.requires_grad:
        return torch.cat([torch.zeros_like(p).flatten() for p in of]).detach()
    found = torch.autograd.grad(
        value, of, retain_graph=True, create_graph=create_graph, allow_unused=True
    )
    return torch.cat(
        [
            torch.zeros_like(p).flatten() if g is None else g.flatten()
            for p, g in zip(of, found, strict=True)
        ]
    )


@dataclass(eq=False)
class Point:
    """A model and a loss: what the definitions are made of.

    ``hessian`` is that of the loss with respect to the outputs, ``ggn`` what the generalised
    Gauss-Newton matrix has in its place (the same, but for a loss that is linear in its input),
    and ``norm`` what the sum over the terms is divided by.
    """

    dense: Dense
    gradient: Tensor
    hessian: Tensor
    ggn: Tensor
    norm: float

    def sampled(self, columns: Tensor) -> "Point":
        """The same with a Gauss-Newton matrix made of columns ``[M, K]``."""
        ggn = (columns.T @ columns) * self.dense.together
        return Point(self.dense, self.gradient, self.hessian, ggn, self.norm)

    @cached_property
    def shares(self) -> Tensor:
        """Each sample's share of the gradient, ``[N, P]``."""
        own = self.dense.owner == torch.arange(self.dense.samples).unsqueeze(1)
        return (own * self.gradient) @ self.dense.jacobian

    @cached_property
    def ggn_shares(self) -> Tensor:
        """Each sample's share of the whole Gauss-Newton matrix, ``[N, P, P]``."""
        rows = [self.dense.owner == n for n in range(self.dense.samples)]
        jacobians = [self.dense.jacobian[own] for own in rows]
        return torch.stack(
            [j.T @ self.ggn[own][:, own] @ j for own, j in zip(rows, jacobians, strict=True)]
        )

    @cached_property
    def hessian_shares(self) -> Tensor:
        """Each sample's share of the whole Hessian, ``[N, P, P]``."""
        shares = []
        for n, residual in enumerate(self.dense.residuals(self.gradient)):
            own = self.dense.owner == n
            j = self.dense.jacobian[own]
            shares.append(j.T @ self.hessian[own][:, own] @ j + residual)
        return torch.stack(shares)

    def blocks(self, matrix: Tensor) -> Iterator[tuple[str, Tensor]]:
        """Each parameter's block of ``[..., P, P]``."""
        for name, place in self.dense.places.items():
            yield name, matrix[..., place, place]


def diagonal(matrix: Tensor) -> Tensor:
    return matrix.diagonal(dim1=-2, dim2=-1)


def norms(at: Point) -> Tensor:
    pieces = [at.shares[:, place].square().sum(1) for place in at.dense.places.values()]
    return torch.stack(pieces, 1)


# Of the quantities that are one tensor: its elements in the order of the parameters, last axis.
TENSORS: dict[str, Callable[[Point], Tensor]] = {
    "grad_batch": lambda at: at.shares,
    "batch_l2": norms,
    "sum_grad_squared": lambda at: at.shares.square().sum(0),
    "variance": lambda at: at.shares.var(0, unbiased=False),
    "diag_empirical_fisher": lambda at: at.norm * at.shares.square().sum(0),
    "diag_ggn_exact": lambda at: diagonal(at.ggn_shares).sum(0),
    "diag_ggn_exact_batch": lambda at: diagonal(at.ggn_shares),
    "diag_h": lambda at: diagonal(at.hessian_shares).sum(0),
    "diag_h_batch": lambda at: diagonal(at.hessian_shares),
}


@dataclass(frozen=True)
class Uses:
    """All calls of the layers ``y_t = W a_t`` that have W.

    Attributes:
        inner: ``1/N sum_n sum_t a_t a_t^T``, ``[K, K]``.
        outer: The derivative of each output with respect to ``sum_t y_t``, ``[K, O]``.
    """

    inner: Tensor
    outer: Tensor


def as_matrix(module: object, weight: Tensor) -> Tensor:
    """W as ``[O, K]``: a transposed convolution keeps its outputs on the second axis."""
    transposed = isinstance(module, nn.modules.conv._ConvTransposeNd)
    return (weight.transpose(0, 1) if transposed else weight).flatten(1)


def channels_last(module: Any, y: Tensor) -> Tensor:
    return y.movedim(1, -1) if isinstance(module, nn.modules.conv._ConvNd) else y


def owners(model: nn.Module, parameter: Tensor) -> list[nn.Module]:
    return [m for m in model.modules() if any(p is parameter for p in m.parameters(False))]


@cache
def uses(dense: Dense, name: str) -> Uses:
    """By derivatives only: that of one element of y_t with respect to its line of W is a_t."""
    weight = trained(dense.model)[name]
    calls: list[tuple[Callable[..., Tensor], list[Tensor], Tensor]] = []
    linear = F.linear

    def kept_linear(x: Tensor, w: Tensor, b: Tensor | None = None) -> Tensor:
        y = linear(x, w, b)
        if w is weight:
            calls.append((lambda a: linear(a, w), [x.detach()], y))
        return y.clone()

    def keep(module: nn.Module, args: tuple[Tensor, ...], y: Tensor) -> Tensor:
        calls.append((module, [a.detach() for a in args], y))
        return y.clone()  # what follows may work in place

    kinds = nn.modules.conv._ConvNd | nn.Bilinear
    layers = [m for m in owners(dense.model, weight) if isinstance(m, kinds)]
    handles = [m.register_forward_hook(keep) for m in layers]
    with mock.patch.object(F, "linear", kept_linear):  # whoever calls it, attention too
        outputs = dense.run()
    for handle in handles:
        handle.remove()
    inner: Any = 0
    for module, args, _ in calls:
        for element in channels_last(module, module(*args))[..., 0].flatten():
            (line,) = torch.autograd.grad(element, weight, retain_graph=True)
            a = as_matrix(module, line)[0]
            inner = inner + torch.outer(a, a) / dense.samples
    outer = []
    for unit in outputs.flatten():
        results = [y for _, _, y in calls]
        found = torch.autograd.grad(unit, results, retain_graph=True, allow_unused=True)
        sums = [
            channels_last(m, s).flatten(0, -2).sum(0)
            for (m, _, _), s in zip(calls, found, strict=True)
            if s is not None
        ]
        outer.append(torch.stack(sums).sum(0))
    return Uses(inner, torch.stack(outer))


def kronecker(at: Point) -> dict[str, list[Tensor]]:
    """KFLR, or with sampled columns KFAC: ``[B, A]``, of a vector its whole block."""
    found = {}
    for name, block in at.blocks(at.ggn_shares.sum(0)):
        if trained(at.dense.model)[name].dim() < 2:
            found[name] = [block]
        else:
            layer = uses(at.dense, name)
            found[name] = [layer.outer.T @ at.ggn @ layer.outer, layer.inner]
    return found


def matrix_blocks(at: Point) -> dict[str, Tensor]:
    """Each parameter's block with the elements in the order of W as a matrix ``[O, K]``."""
    found = {}
    for name, block in at.blocks(at.ggn_shares.sum(0)):
        parameter = trained(at.dense.model)[name]
        order = torch.arange(parameter.numel()).view_as(parameter)
        if parameter.dim() > 1:
            order = as_matrix(owners(at.dense.model, parameter)[0], order)
        found[name] = block[order.flatten()][:, order.flatten()]
    return found
