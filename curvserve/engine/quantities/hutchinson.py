"""Randomised diagonals and traces by products with random signs.

For v with independent random signs, ``E[v * (C v)] = diag C`` and ``E[v^T C v] = tr C``.
(Hutchinson 1989; Bekas, Kokiopoulou, Saad 2007.) C is the whole matrix over all parameters, so
one product serves every parameter.
"""

from typing import Literal

from torch import Tensor

from curvserve.engine.draws import SeededDraws, random_signs
from curvserve.engine.linearised import (
    Linearised,
    ggn_product,
    hessian_product,
    loss_ggn_product,
    twice_differentiable,
)
from curvserve.engine.products import Product
from curvserve.engine.quantities.base import Quantity
from curvserve.engine.second_order import Pass
from curvserve.engine.spectrum import diagonal_estimate

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
        parameters = [*at.parameters(), *at.absent]
        # Of a seed the same for every part of a batch, so that the parts add up.
        generator = at.draws.generator() if isinstance(at.draws, SeededDraws) else None
        signs = [random_signs(parameters, generator) for _ in range(self.mc_samples)]

        def estimates(this: Pass) -> dict[Tensor, Tensor]:
            product = self._product(this, Linearised(this.output, this.loss.outputs, parameters))
            found = map(self._reduce, diagonal_estimate(product, signs))
            return dict(zip(parameters, found, strict=True))

        return twice_differentiable(at, estimates)

    def _product(self, at: Pass, model: Linearised) -> Product:
        if self.matrix == "ggn":
            return ggn_product(model, loss_ggn_product(at.loss))
        return hessian_product(model, at.loss)

    def _reduce(self, diagonal: Tensor) -> Tensor:
        return diagonal


class HutchinsonTrace(HutchinsonDiagonal):
    """An unbiased estimate of the trace of each parameter's block, in ``p.hutchinson_trace``.

    The mean of ``v^T C v`` over draws of v, restricted to the parameter. A scalar; the sum over
    all parameters estimates the trace of the whole matrix.
    """

    savefield = "hutchinson_trace"

    def _reduce(self, diagonal: Tensor) -> Tensor:
        return diagonal.sum()
