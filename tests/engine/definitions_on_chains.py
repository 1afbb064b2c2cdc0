"""KFRA, HBP and PCHMP by recursion over modules, each a dense matrix for each sample."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor, nn
from torch.autograd.functional import hessian, jacobian

from tests.engine.definitions import Point, channels_last, uses
from tests.engine.reference import trained

Modify = Callable[[Tensor], Tensor]
MODIFY: dict[str, Modify] = {
    "ggn": torch.zeros_like,
    "hessian": lambda d: d,
    "pch-clip": lambda d: d.clamp(min=0),
    "pch-abs": lambda d: d.abs(),
}


@dataclass(eq=False)
class Link:
    """A module with, for each sample, its input, its Jacobian ``[out, in]`` and the gradient."""

    module: nn.Module
    inputs: list[Tensor]
    jacobians: list[Tensor]
    gradients: list[Tensor]  # of the loss with respect to the output

    @cache  # noqa: B019 # a link lives as long as the tests
    def second(self, n: int) -> Tensor:
        """The diagonal of ``d^2 <g, module(x)> / dx^2``."""
        x, g = self.inputs[n], self.gradients[n]
        full = hessian(lambda v: (alone(self.module, v).flatten() * g).sum(), x)
        return full.reshape(x.numel(), x.numel()).diagonal()


def alone(module: nn.Module, x: Tensor) -> Tensor:
    return module(x.unsqueeze(0))[0]


@cache
def links(at: Point) -> list[Link]:
    """The modules from the last one to the first that has parameters or a real-valued input."""
    made: list[Link] = []
    x = at.dense.inputs
    for module in at.dense.model:
        inputs = list(x.detach())
        jacobians = []
        if x.is_floating_point():
            for v in inputs:
                found = jacobian(lambda u, m=module: alone(m, u), v)
                jacobians.append(found.reshape(-1, v.numel()))
        made.append(Link(module, inputs, jacobians, []))
        x = module(x)
    made.reverse()
    gradients = [at.gradient[at.dense.owner == n] for n in range(at.dense.samples)]
    for link in made:
        link.gradients = gradients
        gradients = [j.T @ g for j, g in zip(link.jacobians, gradients, strict=False)]
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
        if kind == "ggn":
            matrix = pulled
        else:
            own = torch.stack([link.second(n) for n in range(at.dense.samples)]).sum(0)
            matrix = pulled + MODIFY[kind](own).diag()
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
            j.T @ matrices[n] @ j + MODIFY[kind](link.second(n)).diag()
            for n, j in enumerate(link.jacobians)
        ]
    return found


def own_jacobian(module: nn.Module, parameter: Tensor, x: Tensor) -> Tensor:
    rows = [
        torch.autograd.grad(unit, parameter, retain_graph=True, allow_unused=True)[0]
        for unit in alone(module, x).flatten()
    ]
    return torch.stack([torch.zeros(parameter.numel()).to(x) if r is None else r.flatten()
                        for r in rows])  # fmt: skip
