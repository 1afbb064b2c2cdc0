"""KFRA, HBP and PCHMP by recursion over modules, each a dense matrix for each sample."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, cached_property

import torch
from torch import Tensor, nn
from torch.autograd.functional import hessian, jacobian

from tests.engine.definitions import Dense, Point, channels_last, uses
from tests.engine.reference import trained

Modify = Callable[[Tensor], Tensor]
MODIFY: dict[str, Modify] = {
    "ggn": lambda d: d,
    "hessian": lambda d: d,
    "pch-clip": lambda d: d.clamp(min=0),
    "pch-abs": lambda d: d.abs(),
}


@dataclass(eq=False)
class Module:
    """A module with, for each sample, its input and its Jacobian ``[out, in]``, if that has one."""

    module: nn.Module
    inputs: list[Tensor]
    jacobians: list[Tensor]


@dataclass(eq=False)
class Link(Module):
    """And with the gradient of a loss with respect to its output, for each sample."""

    gradients: list[Tensor]

    @cached_property
    def second(self) -> Tensor:
        """The diagonals of ``d^2 <g, module(x)> / dx^2``, ``[N, in]``."""
        found = []
        for x, g in zip(self.inputs, self.gradients, strict=True):
            full = hessian(lambda v, g=g: (alone(self.module, v).flatten() * g).sum(), x)
            found.append(full.reshape(x.numel(), x.numel()).diagonal())
        return torch.stack(found)


def alone(module: nn.Module, x: Tensor) -> Tensor:
    return module(x.unsqueeze(0))[0]


@cache
def modules(dense: Dense) -> list[Module]:
    """The modules from the last one to the first."""
    made: list[Module] = []
    x = dense.inputs
    for module in dense.model:
        inputs, jacobians = list(x.detach()), []
        for v in inputs if x.is_floating_point() else []:
            found = jacobian(lambda u, m=module: alone(m, u), v)
            jacobians.append(found.reshape(-1, v.numel()))
        made.append(Module(module, inputs, jacobians))
        x = module(x)
    return made[::-1]


@cache
def links(at: Point) -> list[Link]:
    gradients = [at.gradient[at.dense.owner == n] for n in range(at.dense.samples)]
    made = []
    for m in modules(at.dense):
        made.append(Link(m.module, m.inputs, m.jacobians, gradients))
        gradients = [j.T @ g for j, g in zip(m.jacobians, gradients, strict=False)]
    return made


def sample_blocks(at: Point) -> list[Tensor]:
    """The matrix at the outputs of each sample."""
    rows = [at.dense.owner == n for n in range(at.dense.samples)]
    return [at.ggn[own][:, own] for own in rows]


def averaged(at: Point, kind: str) -> dict[str, list[Tensor]]:
    """KFRA (of "ggn"), and HBP with the strategy "average"."""
    matrix = torch.stack(sample_blocks(at)).sum(0)
    names = {p: name for name, p in trained(at.dense.model).items()}
    found = {}
    for link in links(at):
        for p in link.module.parameters():
            if p in names:
                found[names[p]] = factors(at, link, names[p], matrix)
        if not link.jacobians:
            break
        pulled = torch.stack([j.T @ matrix @ j for j in link.jacobians]).mean(0)
        second = link.second.sum(0) if kind != "ggn" else torch.zeros(len(pulled)).double()
        matrix = pulled + MODIFY[kind](second).diag()
    return found


def factors(at: Point, link: Link, name: str, matrix: Tensor) -> list[Tensor]:
    """B is the matrix summed over pairs of positions."""
    y = alone(link.module, link.inputs[0]).detach().unsqueeze(0)
    unit = channels_last(link.module, torch.arange(y.numel()).view_as(y)).flatten(0, -2)
    pairs = [matrix[s][:, t] for s in unit for t in unit]
    outer = torch.stack(pairs).sum(0)
    return [outer] if name.endswith("bias") else [outer, uses(at.dense, name).inner]


def positive_curvature(at: Point, kind: str) -> dict[str, Tensor]:
    """Each parameter's block of the positive-curvature Hessian."""
    names = {p: name for name, p in trained(at.dense.model).items()}
    matrices = sample_blocks(at)
    found = {}
    for link in links(at):
        for p in link.module.parameters():
            if p in names:
                rows = [own_jacobian(link.module, p, x) for x in link.inputs]
                pulled = [j.T @ m @ j for j, m in zip(rows, matrices, strict=True)]
                found[names[p]] = torch.stack(pulled).sum(0)
        if not link.jacobians:
            break
        matrices = [
            j.T @ matrix @ j + MODIFY[kind](own).diag()
            for j, matrix, own in zip(link.jacobians, matrices, link.second, strict=True)
        ]
    return found


@cache
def own_jacobian(module: nn.Module, parameter: Tensor, x: Tensor) -> Tensor:
    rows = []
    for unit in alone(module, x).flatten():
        (row,) = torch.autograd.grad(unit, parameter, retain_graph=True, allow_unused=True)
        rows.append(torch.zeros_like(parameter).flatten() if row is None else row.flatten())
    return torch.stack(rows)
