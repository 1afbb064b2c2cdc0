"""Kronecker-factored approximations of the blocks of the Gauss-Newton matrix.

For a layer ``y_t = W a_t`` (t runs over the positions that share W: tokens, pixels) the rows are
``sum_t s_t a_t^T``, and the block of W is approximated by ``B (x) A``, A made of the inputs and B
of the cotangents, acting on W as a row-major vector. (Martens and Grosse, ICML 2015; Grosse and
Martens, ICML 2016; Botev, Ritter, Barber, ICML 2017; George et al., NeurIPS 2018; Eschenhagen et
al., NeurIPS 2023.)
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor
from torch.utils._pytree import register_pytree_node

from curvserve.engine.errors import UncoveredParameterError
from curvserve.engine.quantities.base import ColumnQuantity, Exact, MonteCarlo
from curvserve.engine.rows import Matrices, Rows

__all__ = ["KFAC", "KFLR", "EKFAC"]

Sharing = Literal["expand", "reduce"] | None
_SHARING = (None, "expand", "reduce")


@dataclass(frozen=True)
class _Factors:
    """Sums over the samples; the factor A is the mean of its sum.

    Attributes:
        samples: The number N of samples.
        outer: ``sum s s^T``, ``[O, O]``.
        inner: ``sum a a^T``, ``[K, K]``; None for a parameter that is a vector.
        order: That of the entries of a, see :class:`Matrices`.
        columns: The inputs and cotangents of every column, kept where a second look is needed.
    """

    samples: int
    outer: Tensor
    inner: Tensor | None = None
    order: Tensor | None = None
    columns: tuple[tuple[Tensor, Tensor], ...] = field(default=(), repr=False)

    def results(self) -> list[Tensor]:
        """The factors; the sums are used up, so that there are not two of the largest at a time."""
        if self.inner is None:
            return [self.outer]
        inner = self.inner.div_(self.samples)
        return [self.outer, self.in_order(self.in_order(inner, 0), 1)]

    def in_order(self, t: Tensor, axis: int) -> Tensor:
        """What has an axis of the entries of a, with these in the order of the columns of W."""
        return t if self.order is None else t.index_select(axis, self.order)


def _sums(factors: _Factors) -> tuple[list[Tensor], Any]:
    """What of the factors of some samples adds up, and what is the same for all."""
    if factors.columns:
        raise TypeError("columns of different samples do not add up")
    counted = factors.outer.new_tensor(factors.samples)
    inner = [] if factors.inner is None else [factors.inner]
    return [counted, factors.outer, *inner], factors.order


def _of_sums(sums: Iterable[Tensor], order: Any) -> _Factors:
    samples, outer, *inner = sums
    return _Factors(round(samples.item()), outer, inner[0] if inner else None, order)


register_pytree_node(_Factors, _sums, _of_sums)


class _Kronecker(ColumnQuantity):
    """What KFAC and KFLR have in common: they differ in the factor of the loss Hessian."""

    tensor: ClassVar[bool] = False
    of_one_loss: ClassVar[bool] = True
    _keeps_columns: ClassVar[bool] = False

    sharing: Sharing

    def _choose(self, sharing: Sharing) -> None:
        if sharing not in _SHARING:
            raise ValueError(f"sharing must be one of {_SHARING}, got {sharing!r}")
        self.sharing = sharing

    def compute(self, at: Any) -> dict[Tensor, _Factors]:
        """See the base class.

        Raises:
            UncoveredParameterError: A parameter is neither a vector nor the matrix of a layer
                ``y_t = W a_t``.
        """
        try:
            return super().compute(at)
        except _NoMatrixError as error:
            raise UncoveredParameterError(
                f"parameter {at.describe(error.args[0])}: {type(self).__name__} has no Kronecker "
                "factors for it, because it is not the weight of a single linear map (or of "
                "several kinds of them at once); freeze it, or use DiagGGNMC or SqrtGGNMC"
            ) from None

    def reduce(self, rows: Rows) -> _Factors:
        """The factors of one parameter for one column."""
        if rows.like.dim() < 2:
            vectors = rows.dense().reshape(rows.samples, -1)
            return _Factors(rows.samples, vectors.T @ vectors)
        if not rows.parts:
            outputs, inputs = rows.like.shape[0], rows.like[0].numel()
            zeros = rows.like.new_zeros
            return _Factors(rows.samples, zeros(outputs, outputs), zeros(inputs, inputs))
        found = _matrices(rows)
        a, s = found.inputs, found.cotangents
        inner, outer = self._shared(a, s)
        kept = ((a, s),) if self._keeps_columns else ()
        return _Factors(rows.samples, outer.T @ outer, inner.T @ inner, found.order, kept)

    def _shared(self, a: Tensor, s: Tensor) -> tuple[Tensor, Tensor]:
        """The vectors ``[., K]`` and ``[., O]`` whose outer products make the factors."""
        if self.sharing == "expand":
            return a.flatten(0, 1) / a.shape[1] ** 0.5, s.flatten(0, 1)
        if self.sharing == "reduce":
            return a.mean(1), s.sum(1)
        return a.flatten(0, 1), s.sum(1)

    def combine(self, total: _Factors, part: _Factors) -> _Factors:
        """Adds one more column: the inputs are the same."""
        return replace(total, outer=total.outer + part.outer, columns=total.columns + part.columns)

    def merge(self, states: Sequence[_Factors]) -> _Factors:
        """Adds the sums of other samples."""
        inner = [s.inner for s in states if s.inner is not None]
        return _Factors(
            sum(s.samples for s in states),
            torch.stack([s.outer for s in states]).sum(0),
            torch.stack(inner).sum(0) if inner else None,
            states[0].order,
            tuple(column for s in states for column in s.columns),
        )

    def finish(self, state: _Factors) -> list[Tensor]:
        """The factors ``[B, A]``, or ``[B]`` of a vector."""
        return state.results()


class KFAC(_Kronecker, MonteCarlo):
    """Kronecker factors of the sampled Fisher, in ``p.kfac``: ``[B, A]``, or ``[B]`` of a vector.

    ``B = sum_n b_n b_n^T`` in the scale of the loss with ``b_n = sum_t s_t``, and
    ``A = 1/N sum_n sum_t a_t a_t^T``, as BackPACK has them. Of a vector (bias, scale of a norm) B
    is the whole block of the sampled Gauss-Newton matrix.
    """

    savefield = "kfac"

    def __init__(self, mc_samples: int = 1, sharing: Sharing = None) -> None:
        """Chooses the number of draws, and how positions that share the weight are treated.

        Args:
            mc_samples: Draws for each sample.
            sharing: With T positions, "expand" takes them for samples of their own,
                ``B = sum_{n,t} s_t s_t^T`` and ``A = 1/(N T) sum_{n,t} a_t a_t^T``; "reduce" takes
                them together first, ``b_n = sum_t s_t`` and ``A`` of ``1/T sum_t a_t``. None is
                BackPACK's mixture. Without extra axes (T = 1) all three agree.

        Raises:
            ValueError: An option is none of these.
        """
        super().__init__(mc_samples)
        self._choose(sharing)


class KFLR(_Kronecker, Exact):
    """As KFAC, of the exact factor of the loss Hessian, in ``p.kflr``."""

    savefield = "kflr"

    def __init__(self, sharing: Sharing = None) -> None:
        """Chooses how positions that share the weight are treated.

        Args:
            sharing: See :class:`KFAC`.

        Raises:
            ValueError: It is no such way.
        """
        self._choose(sharing)


class EKFAC(_Kronecker, MonteCarlo):
    """The Gauss-Newton matrix's diagonal in the eigenbasis of KFAC, in ``p.ekfac``.

    ``[Q_B, Q_A, L]`` with the eigenvectors of KFAC's factors as columns, and ``L = sum (Q_B^T R
    Q_A)^2`` over samples and draws, ``[O, K]``, of the rows R as matrices: the block is
    approximated by ``(Q_B (x) Q_A) diag(L) (Q_B (x) Q_A)^T``, never worse in Frobenius norm than
    KFAC. Of a vector ``[Q, L]``, its block exactly.
    """

    savefield = "ekfac"
    _keeps_columns: ClassVar[bool] = True

    def __init__(self, mc_samples: int = 1, sharing: Sharing = None) -> None:
        """Chooses the number of draws, and how positions that share the weight are treated.

        Args:
            mc_samples: Draws for each sample.
            sharing: See :class:`KFAC`; it decides the eigenbasis only.

        Raises:
            ValueError: An option is none of these.
        """
        super().__init__(mc_samples)
        self._choose(sharing)

    def finish(self, state: _Factors) -> list[Tensor]:
        """The eigenvectors, and the second moments along them."""
        values, outer = torch.linalg.eigh(state.outer)
        if state.inner is None:
            return [outer, values.clamp_(min=0)]
        inner = torch.linalg.eigh(state.inner).eigenvectors
        moments = outer.new_zeros(len(outer), len(inner))
        for a, s in state.columns:
            for a_n, s_n in zip(a @ inner, s @ outer, strict=True):
                moments += (s_n.T @ a_n).square_()
        # laid out as the other, column by column: torch.kron takes no mixture
        return [outer, state.in_order(inner.mT, 1).mT, moments]


class _NoMatrixError(Exception):
    """The parameter, its only argument, is not the matrix of a linear layer."""


def _matrices(rows: Rows) -> Matrices:
    """Inputs and cotangents of all uses of a matrix; a further use is further positions."""
    every = [part.matrices() for part in rows.parts]
    found = [m for m in every if m is not None]
    shapes = {(m.inputs.shape[2], m.cotangents.shape[2]) for m in found}
    if len(found) < len(every) or len(shapes) > 1:
        raise _NoMatrixError(rows.like)
    if len(found) == 1:
        return found[0]
    cotangents = [m.cotangents for m in found]
    return Matrices(torch.cat([m.ordered() for m in found], 1), torch.cat(cotangents, 1))
