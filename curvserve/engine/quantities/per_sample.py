"""Quantities made of the gradients of the single samples.

With ``g_n`` the gradient of the n-th sample's loss, a mean over N samples makes its share of the
gradient ``g_n / N``, a sum makes it ``g_n``. Everything here is of these shares.
"""

from collections.abc import Sequence
from typing import Any, ClassVar, NamedTuple

from torch import Tensor

from curvserve.engine.quantities.base import GradientQuantity, Subsampled
from curvserve.engine.rows import Rows

__all__ = ["BatchGrad", "BatchL2Grad", "SumGradSquared", "Variance"]


class BatchGrad(GradientQuantity, Subsampled):
    """The gradient of each sample's share of the loss, in ``p.grad_batch``.

    Row n is ``g_n / N`` for a mean over N samples: the rows add up to ``p.grad``. Shape
    ``[N, *p.shape]``.
    """

    savefield = "grad_batch"
    per_sample: ClassVar[int | None] = 0

    def __init__(self, subsampling: Sequence[int] | None = None) -> None:
        """Chooses the samples.

        Args:
            subsampling: The indices of the samples to keep, all of them by default. The scale
                stays that of the full batch.

        Raises:
            ValueError: The list is no list of different indices.
        """
        self._choose(subsampling)

    def reduce(self, rows: Rows) -> Tensor:
        """The rows of the chosen samples."""
        return self.chosen(rows)


class BatchL2Grad(GradientQuantity):
    """The squared norm of each sample's share of the gradient, in ``p.batch_l2``.

    Entry n is ``||g_n / N||^2`` over this one parameter. Shape ``[N]``. (Goodfellow, Efficient
    per-example gradient computations, 2015.)
    """

    savefield = "batch_l2"
    per_sample: ClassVar[int | None] = 0

    def reduce(self, rows: Rows) -> Tensor:
        """The squared norm of each row; the rows are not formed where that is dearer."""
        return rows.squared_norms()


class SumGradSquared(GradientQuantity):
    """The sum of the samples' squared gradients, in ``p.sum_grad_squared``.

    ``sum_n (g_n / N)^2`` for a mean over N samples, the uncentred second moment. Shape of ``p``.
    """

    savefield = "sum_grad_squared"

    def reduce(self, rows: Rows) -> Tensor:
        """The squared rows, summed over samples."""
        return rows.square_sum()


class _Moments(NamedTuple):
    """The sums over samples of the rows and of their squares."""

    samples: int
    total: Tensor
    squares: Tensor


class Variance(GradientQuantity):
    """The variance of the samples' shares of the gradient, in ``p.variance``.

    The biased one, ``1/N sum_n x_n^2 - (1/N sum_n x_n)^2`` with ``x_n = g_n / N`` for a mean over
    N samples. Shape of ``p``.
    """

    savefield = "variance"

    def reduce(self, rows: Rows) -> _Moments:
        """The first two moments of the rows."""
        return _Moments(rows.samples, rows.total(), rows.square_sum())

    def merge(self, states: Sequence[Any]) -> _Moments:
        """Adds the moments."""
        samples, total, squares = zip(*states, strict=True)
        return _Moments(sum(samples), super().merge(total), super().merge(squares))

    def finish(self, state: _Moments) -> Tensor:
        """The variance; rounding does not make it negative."""
        mean = state.total / state.samples
        return (state.squares / state.samples - mean.square()).clamp_(min=0)
