"""Diagonals of curvature matrices.

The generalised Gauss-Newton matrix of the loss is ``G = sum_n J_n^T H_n J_n`` with ``J_n`` the
Jacobian of the n-th output and ``H_n`` the Hessian of the (scaled) loss there. With any factor
``H_n = S_n S_n^T`` its diagonal is the sum, over samples and columns, of squared rows
``(J_n^T S_n)^2``. (Schraudolph, Fast curvature matrix-vector products for second-order gradient
descent, 2002; Dangel, Kunstner, Hennig, BackPACK, ICLR 2020.)
"""

from typing import ClassVar

from torch import Tensor

from curvserve.engine.losses.base import Draws, LossAt
from curvserve.engine.quantities.base import Quantity
from curvserve.engine.rows import Rows

__all__ = ["DiagGGNExact", "DiagGGNMC"]


class DiagGGNExact(Quantity):
    """The diagonal of the generalised Gauss-Newton matrix, in ``p.diag_ggn_exact``.

    It has the scale of the loss (a mean over the batch for a mean loss) and the parameter's shape.
    One backward pass for each output unit of a sample.
    """

    savefield: ClassVar[str] = "diag_ggn_exact"

    def columns(self, loss: LossAt, draws: Draws) -> Tensor:
        """The exact factor of the loss Hessian."""
        return loss.exact_columns()

    def reduce(self, rows: Rows) -> Tensor:
        """The squared rows, summed over samples."""
        return rows.square_sum()


class DiagGGNMC(Quantity):
    """A Monte-Carlo estimate of that diagonal, unbiased, in ``p.diag_ggn_mc``.

    The factor of the loss Hessian is replaced by gradients of the loss at targets drawn from the
    model's own predictive distribution: one backward pass for each draw. Shape and scale are
    those of ``DiagGGNExact``.
    """

    savefield: ClassVar[str] = "diag_ggn_mc"

    def __init__(self, mc_samples: int = 1) -> None:
        """Chooses the number of draws.

        Args:
            mc_samples: Draws for each sample; the variance of the estimate falls as one over it.

        Raises:
            ValueError: ``mc_samples`` is not a positive integer.
        """
        if not isinstance(mc_samples, int) or isinstance(mc_samples, bool) or mc_samples < 1:
            raise ValueError(f"mc_samples must be a positive integer, got {mc_samples!r}")
        self.mc_samples = mc_samples

    def columns(self, loss: LossAt, draws: Draws) -> Tensor:
        """The sampled factor of the loss Hessian."""
        return loss.sampled_columns(self.mc_samples, draws)

    def reduce(self, rows: Rows) -> Tensor:
        """The squared rows, summed over samples."""
        return rows.square_sum()
