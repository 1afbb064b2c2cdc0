"""Randomised diagonals and traces by products with random signs.

For v with independent random signs, ``E[v * (C v)] = diag C`` and ``E[v^T C v] = tr C``.
(Hutchinson 1989; Bekas, Kokiopoulou, Saad 2007.) C is the whole matrix over all parameters, so
one product serves every parameter.
"""

from collections.abc import Iterator, Sequence
from typing import Literal

import torch
from torch import Tensor

from curvserve.engine.draws import SeededDraws
from curvserve.engine.linearised import Linearised, loss_hessian_product, twice_differentiable
from curvserve.engine.quantities.base import Quantity
from curvserve.engine.second_order import Pass

__all__ = ["HutchinsonDiagonal", "HutchinsonTrace"]

Matrix = Literal["hessian", "ggn"]


class HutchinsonDiagonal(Quantity):
    """An unbiased estimate of a curvature diagonal, in ``p.hutchinson_diagonal``.

    The mean of ``v * (C v)`` over draws of v, in the scale of the loss; C is the Hessian or the
    Gauss-Newton matrix. Shape of ``p``. Its error comes from the elements off the diagonal and
    does not fall with the batch: where C is the Gauss-Newton matrix, ``DiagGGNMC`` is better.
    """

    savefield = "hutchinson_diagonal"

    def __init__(self, mc_samples: int = 1, matrix: Matrix = "hessian") -> None:
        """Chooses the number of draws and the matrix.

        Args:
            mc_samples: Draws of v, with one product each.
            matrix: "hessian" or "ggn".

        Raises:
            ValueError: An option is none of these.
        """
        if not isinstance(mc_samples, int) or isinstance(mc_samples, bool) or mc_samples < 1:
            raise ValueError(f"mc_samples must be a positive integer, got {mc_samples!r}")
        if matrix not in ("hessian", "ggn"):
            raise ValueError(f"matrix must be 'hessian' or 'ggn', got {matrix!r}")
        self.mc_samples, self.matrix = mc_samples, matrix

    def compute(self, at: Pass) -> dict[Tensor, Tensor]:
        """See the base class."""
        signs = list(_signs([*at.parameters(), *at.absent], self.mc_samples, at.draws))
        return twice_differentiable(at, lambda this: self._compute(this, signs))

    def _compute(self, at: Pass, signs: Sequence[Sequence[Tensor]]) -> dict[Tensor, Tensor]:
        parameters = [*at.parameters(), *at.absent]
        model = Linearised(at.output, at.loss.outputs, parameters)
        columns = at.loss.exact_columns() if self.matrix == "ggn" else None
        states: dict[Tensor, Tensor] = {}
        for vectors in signs:
            pushed = model.push(vectors)
            if columns is None:
                products = model.pull(at.loss.hessian_product(pushed))
                curved = model.curve(at.loss.gradient(), vectors)
                products = [p + c for p, c in zip(products, curved, strict=True)]
            else:
                products = model.pull(loss_hessian_product(at.loss, columns, pushed))
            for parameter, v, product in zip(parameters, vectors, products, strict=True):
                part = self._estimate(v, product) / self.mc_samples
                states[parameter] = states[parameter] + part if parameter in states else part
        return states

    def _estimate(self, signs: Tensor, product: Tensor) -> Tensor:
        return signs * product


class HutchinsonTrace(HutchinsonDiagonal):
    """An unbiased estimate of the trace of each parameter's block, in ``p.hutchinson_trace``.

    The mean of ``v^T C v`` over draws of v, restricted to the parameter. A scalar; the sum over
    all parameters estimates the trace of the whole matrix.
    """

    savefield = "hutchinson_trace"

    def _estimate(self, signs: Tensor, product: Tensor) -> Tensor:
        return (signs * product).sum()


def _signs(parameters: Sequence[Tensor], count: int, draws: object) -> Iterator[list[Tensor]]:
    """Random signs; of a seed the same for every part of a batch, so that the parts add up."""
    generator = None
    if isinstance(draws, SeededDraws):
        generator = torch.Generator().manual_seed(draws.seed)
    for _ in range(count):
        yield [
            (2 * torch.randint(2, p.shape, generator=generator) - 1).to(p.detach())
            for p in parameters
        ]
