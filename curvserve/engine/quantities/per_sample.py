"""Quantities with one entry for each sample of the batch."""

from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor

from curvserve.engine.quantities.base import Quantity
from curvserve.engine.rows import Rows

__all__ = ["BatchGrad"]


class BatchGrad(Quantity):
    """The gradient of each sample's share of the loss, in ``p.grad_batch``.

    With a mean over N samples, row n is ``g_n / N`` where ``g_n`` is the gradient of the n-th
    sample's loss: the rows add up to ``p.grad``. Shape ``[N, *p.shape]``.
    """

    savefield: ClassVar[str] = "grad_batch"
    additive: ClassVar[bool] = False

    def __init__(self, subsampling: Sequence[int] | None = None) -> None:
        """Chooses the samples.

        Args:
            subsampling: The indices of the samples to keep, all of them by default. The scale
                stays that of the full batch.

        Raises:
            ValueError: The list is empty or names a sample twice.
        """
        if subsampling is not None:
            subsampling = [int(index) for index in subsampling]
            if not subsampling or len(set(subsampling)) < len(subsampling):
                raise ValueError(
                    "subsampling must be a non-empty list of different sample indices, "
                    f"got {subsampling}"
                )
        self.subsampling = subsampling

    def reduce(self, rows: Rows) -> Tensor:
        """The rows of the chosen samples.

        Raises:
            IndexError: ``subsampling`` names a sample that the batch does not have.
        """
        if self.subsampling is None:
            return rows.dense()
        if max(self.subsampling) >= rows.samples or min(self.subsampling) < 0:
            raise IndexError(
                f"BatchGrad(subsampling={self.subsampling}) on a batch of {rows.samples} samples"
            )
        return rows.dense(torch.tensor(self.subsampling))
