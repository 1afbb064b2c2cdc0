"""The per-sample rows ``J_n^T s_n`` of one parameter for one cotangent, formed only on demand."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Size, Tensor

__all__ = ["Matrices", "Part", "Rows"]


@dataclass(frozen=True)
class Matrices:
    """A layer ``y_t = W a_t``: row n for the matrix W, O x K, is ``sum_t s_t a_t^T``.

    Attributes:
        inputs: The inputs a, ``[N, T, K]``, their entries in an order of their own.
        cotangents: The cotangents s, ``[N, T, O]``.
        order: Which entry of the inputs each column of W belongs to; None if they agree. Putting
            inputs in order is a pass over them, which many uses can do without.
    """

    inputs: Tensor
    cotangents: Tensor
    order: Tensor | None = None

    def ordered(self) -> Tensor:
        """The inputs in the order of the columns of W."""
        return self.inputs if self.order is None else self.inputs.index_select(2, self.order)


class Part(Protocol):
    """The share that one call of one module has in the rows of a parameter."""

    def rows(self, samples: Tensor | None) -> Tensor:
        """The rows ``[N, *p]``, or only those of the given samples."""

    def square_sum(self, others: "Sequence[Part]" = ()) -> Tensor:
        """The rows squared and summed over the samples ``[*p]``.

        Args:
            others: The same part of further columns, whose squares are added.
        """

    def matrices(self) -> Matrices | None:
        """The call as that of a layer ``y_t = W a_t``; None if the parameter is no such W."""

    def weighted(self, weights: Tensor) -> "Part":
        """The same of rows that are each multiplied by an entry of ``weights`` ``[N]``."""

    def lines(self) -> range | None:
        """Which lines of the rows may be other than zero, None where that is not known."""


@dataclass(frozen=True)
class Rows:
    """The rows of one parameter: the sum of the parts of all its uses.

    A parameter that is used more than once (tied weights, a module called twice) has the sum of
    its parts as its row, and only then is anything squared.

    Attributes:
        parts: One for each call that uses the parameter; none if the loss does not depend on it.
        samples: The number N of samples.
        like: The parameter, for shape, dtype and device.
    """

    parts: Sequence[Part]
    samples: int
    like: Tensor

    def dense(self, samples: Tensor | None = None) -> Tensor:
        """The rows themselves.

        Args:
            samples: Indices of the samples to form rows of; all by default.

        Returns:
            A tensor ``[N, *p]``, with the samples asked for in the order asked for.
        """
        if not self.parts:
            count = self.samples if samples is None else len(samples)
            return self.like.new_zeros(Size((count, *self.like.shape)))
        total = self.parts[0].rows(samples)
        for part in self.parts[1:]:
            total = total + part.rows(samples)
        return total

    def square_sum(self, others: "Sequence[Rows]" = ()) -> Tensor:
        """``sum_n (J_n^T s_n)^2``, shape ``[*p]``; rows are formed only of what is used twice.

        Args:
            others: The rows of further columns, whose squares are added.
        """
        columns = [self, *others]
        if self._apart() and all(len(rows.parts) == len(self.parts) for rows in others):
            found = zip(*(rows.parts for rows in columns), strict=True)
            first, *rest = (part.square_sum(more) for part, *more in found)
            return torch.stack([first, *rest]).sum(0) if rest else first
        total = self.dense().square().sum(0)
        for rows in others:
            total = total + rows.dense().square().sum(0)
        return total

    def _apart(self) -> bool:
        """Whether no two parts share a line, so that their squares add up."""
        lines = [part.lines() for part in self.parts]
        taken = sorted((own.start, own.stop) for own in lines if own is not None)
        known = len(taken) == len(lines)
        behind = all(a[1] <= b[0] for a, b in itertools.pairwise(taken))
        return len(lines) == 1 or (len(lines) > 1 and known and behind)

    def weighted(self, weights: Tensor) -> "Rows":
        """The rows, each multiplied by an entry of ``weights`` ``[N]``."""
        return replace(self, parts=[part.weighted(weights) for part in self.parts])

    def total(self) -> Tensor:
        """``sum_n J_n^T s_n``, shape ``[*p]``."""
        return self.dense().sum(0)

    def squared_norms(self) -> Tensor:
        """``||J_n^T s_n||^2`` for each sample, shape ``[N]``.

        For a layer ``y_t = W a_t`` it is ``sum_{t,u} (a_t . a_u) (s_t . s_u)``: where that is
        cheaper, the rows are not formed. (Li et al., Large language models can be strong
        differentially private learners, ICLR 2022.)
        """
        matrices = self.parts[0].matrices() if len(self.parts) == 1 else None
        if matrices is not None:
            a, s = matrices.inputs, matrices.cotangents
            if a.shape[1] ** 2 < a.shape[2] * s.shape[2]:
                return ((a @ a.mT) * (s @ s.mT)).sum((1, 2))
        return self.dense().reshape(self.samples, -1).square().sum(1)
