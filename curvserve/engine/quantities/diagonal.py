"""Diagonals of the generalised Gauss-Newton matrix and of the empirical Fisher.

The generalised Gauss-Newton matrix of the loss is ``G = sum_n J_n^T H_n J_n`` with ``J_n`` the
Jacobian of the n-th output and ``H_n`` the Hessian of the (scaled) loss there. With any factor
``H_n = S_n S_n^T`` its diagonal is the sum, over samples and columns, of squared rows
``(J_n^T S_n)^2``. (Schraudolph, Fast curvature matrix-vector products for second-order gradient
descent, 2002; Dangel, Kunstner, Hennig, BackPACK, ICLR 2020.)
"""

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, ClassVar

from torch import Tensor

from curvserve.engine.losses.base import Draws, LossAt
from curvserve.engine.quantities.base import ColumnQuantity, MonteCarlo
from curvserve.engine.rows import Rows

if TYPE_CHECKING:
    from curvserve.engine.second_order import Pass, Transport

__all__ = [
    "DiagGGNExact",
    "DiagGGNMC",
    "BatchDiagGGNExact",
    "BatchDiagGGNMC",
    "DiagEmpiricalFisher",
    "square_sums",
]


def square_sums(at: "Transport", columns: Iterable[Tensor]) -> dict[Tensor, Tensor]:
    """The squared rows of each parameter, summed over samples and columns.

    Args:
        at: The way to the layers.
        columns: Cotangents of the model's output, as many of which go back together as fit.
    """
    sums: dict[Tensor, Tensor] = {}
    for first, *others in at.row_groups(columns):
        for parameter, rows in first.items():
            part = rows.square_sum([other[parameter] for other in others])
            sums[parameter] = sums[parameter] + part if parameter in sums else part
    return sums


class _Squares(ColumnQuantity):
    """A sum of squared rows over samples and columns."""

    def compute(self, at: "Pass") -> dict[Tensor, Any]:
        """See the base class."""
        return square_sums(at, self.columns(at.loss, at.draws))

    def reduce(self, rows: Rows) -> Tensor:
        """The squared rows, summed over samples."""
        return rows.square_sum()


class _Thin(ColumnQuantity):
    """Made of any exact factor of the loss Hessian: of the one with the fewest columns."""

    def columns(self, loss: LossAt, draws: Draws) -> Iterable[Tensor]:
        """See the base class."""
        return loss.exact_columns(thin=True)


class DiagGGNExact(_Squares, _Thin):
    """The diagonal of the generalised Gauss-Newton matrix, in ``p.diag_ggn_exact``.

    It has the scale of the loss (a mean over the batch for a mean loss) and the parameter's shape.
    One backward pass for each output unit of a sample, for a cross entropy one less.
    """

    savefield = "diag_ggn_exact"


class DiagGGNMC(_Squares, MonteCarlo):
    """A Monte-Carlo estimate of that diagonal, unbiased, in ``p.diag_ggn_mc``.

    The factor of the loss Hessian is replaced by gradients of the loss at targets drawn from the
    model's own predictive distribution: one backward pass for each draw. Shape and scale are
    those of ``DiagGGNExact``.
    """

    savefield = "diag_ggn_mc"


class BatchDiagGGNExact(_Thin):
    """Each sample's share of ``DiagGGNExact``, in ``p.diag_ggn_exact_batch``, ``[N, *p.shape]``.

    The sum over the samples is ``DiagGGNExact``.
    """

    savefield = "diag_ggn_exact_batch"
    per_sample: ClassVar[int | None] = 0

    def reduce(self, rows: Rows) -> Tensor:
        """The squared rows."""
        return rows.dense().square()


class BatchDiagGGNMC(MonteCarlo):
    """Each sample's share of ``DiagGGNMC``, in ``p.diag_ggn_mc_batch``, ``[N, *p.shape]``."""

    savefield = "diag_ggn_mc_batch"
    per_sample: ClassVar[int | None] = 0

    def reduce(self, rows: Rows) -> Tensor:
        """The squared rows."""
        return rows.dense().square()


class DiagEmpiricalFisher(_Squares):
    """The diagonal of the empirical Fisher matrix, in ``p.diag_empirical_fisher``.

    ``1/norm sum_n g_n^2`` with ``g_n`` the gradient of the n-th sample's undivided loss and norm
    what the loss divides by (N for a plain mean over N samples, 1 for a sum): it has the scale of
    the loss, as the Gauss-Newton diagonal has. Shape of ``p``. (On how it differs from the Fisher:
    Kunstner, Hennig, Balles, NeurIPS 2019.)
    """

    savefield = "diag_empirical_fisher"

    def columns(self, loss: LossAt, draws: Draws) -> Iterable[Tensor]:
        """The gradient of the loss, brought to the scale of a factor of a Hessian."""
        factor = loss.factor()
        return [loss.gradient() / factor.where(factor != 0, 1).sqrt()]
