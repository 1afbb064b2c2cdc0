"""The square root of the generalised Gauss-Newton matrix, sample by sample.

``G = sum_{v,n} V[v,n] V[v,n]^T`` with ``V[v,n] = J_n^T S_n[v]``. (Dangel, Tatzel, Hennig, ViViT,
TMLR 2022.)
"""

from collections.abc import Iterable, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from curvserve.engine.quantities.base import Exact, MonteCarlo, Subsampled
from curvserve.engine.rows import Rows

__all__ = ["SqrtGGNExact", "SqrtGGNMC"]


class _Stacked(Subsampled):
    """Keeps the rows of every column: the state is a list of them."""

    per_sample: ClassVar[int | None] = 1

    def reduce(self, rows: Rows) -> list[Tensor]:
        """The rows of one column."""
        return [self.chosen(rows)]

    def combine(self, total: Any, part: Any) -> Any:
        """Appends the rows of one more column."""
        return total + part

    def merge(self, states: Sequence[Any]) -> list[Tensor]:
        """Puts the samples of each column together."""
        return [torch.cat(pieces) for pieces in zip(*states, strict=True)]

    def finish(self, state: Iterable[Tensor]) -> Tensor:
        """One tensor of all columns."""
        return torch.stack(list(state))


class SqrtGGNExact(_Stacked, Exact):
    """A square root of the GGN, in ``p.sqrt_ggn_exact``, shape ``[C, N, *p.shape]``.

    C is the number of columns of one sample's loss Hessian (its output units). With the first two
    axes folded, ``V^T V`` is this parameter's block of the GGN, in the scale of the loss.
    """

    savefield = "sqrt_ggn_exact"

    def __init__(self, subsampling: Sequence[int] | None = None) -> None:
        """Chooses the samples.

        Args:
            subsampling: The indices of the samples to keep, all of them by default; the scale
                stays that of the full batch.

        Raises:
            ValueError: The list is no list of different indices.
        """
        self._choose(subsampling)


class SqrtGGNMC(_Stacked, MonteCarlo):
    """A Monte-Carlo estimate of it, in ``p.sqrt_ggn_mc``, shape ``[mc_samples, N, *p.shape]``."""

    savefield = "sqrt_ggn_mc"

    def __init__(self, mc_samples: int = 1, subsampling: Sequence[int] | None = None) -> None:
        """Chooses the number of draws and the samples.

        Args:
            mc_samples: Draws for each sample.
            subsampling: The indices of the samples to keep, all of them by default; the scale
                stays that of the full batch.

        Raises:
            ValueError: ``mc_samples`` is not a positive integer, or the list is none of different
                indices.
        """
        super().__init__(mc_samples)
        self._choose(subsampling)
