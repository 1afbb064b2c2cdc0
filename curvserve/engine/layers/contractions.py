"""``sum_n (S_n^T A_n)^2``: the squared rows of a layer ``y_t = W a_t``, summed over the samples.

Over the columns of a factor too, where there are several: whatever is made of A is made once.

With T positions, K inputs and O outputs the row of a sample is the matrix ``S_n^T A_n``, O x K.
Which of these ways is the shortest depends on the sizes, and for one on how many cotangents are
zero. The first that fits is taken; each gives the same numbers up to rounding.

===========  ==============================  =====================================================
way          where                           why
===========  ==============================  =====================================================
squares      T = 1                           ``(S^2)^T A^2``: one product, and no row is formed
few          a CPU, :mod:`..native` was      what is zero is left out: behind a pool three quarters;
             compiled, and most of S is      0.2 to 0.6 of the time of tiles; ``native/sparse.py``
             zero                            has what decides
tiles        a CPU, and :mod:`..native`      rows are squared and added in registers, never
             was compiled                    written; 0.5 to 0.8 of the time of the ways below
pairs        T <= 4, rows of 256 KB or more  one product over pairs of positions, in place of N
                                             small ones whose results leave the cache
one by one   rows of 256 KB or more, not     each is formed in one buffer, and squared and added
             on a GPU                        in one pass over it
chunks       otherwise                       as many at a time as stay in the second-level cache; on
                                             a GPU as make kernels that are worth their launch
===========  ==============================  =====================================================
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from curvserve.engine import native

__all__ = ["ROWS", "at_a_time", "by_tiles", "square_sum", "squares"]

ROWS = {"cpu": 1 << 20, "cuda": 64 << 20}
"""The bytes that the rows of one chunk may take: in a core's second-level cache, or a GPU's."""

_LARGE_ROW = 1 << 18
_FEW_POSITIONS = 4


def by_tiles(a: Tensor, positions: int) -> bool:
    """Whether the way is tiles, for which A need not be written."""
    return positions > 1 and native.admits(a)


def at_a_time(bytes_each: int, like: Tensor, room: Mapping[str, int] = ROWS) -> int:
    """How many samples make a chunk.

    Args:
        bytes_each: What is written for one of them.
        like: A tensor where they are.
        room: How much may be written, for each kind of device.
    """
    return max(1, room.get(like.device.type, room["cpu"]) // max(1, bytes_each))


def square_sum(a: Tensor, columns: Sequence[Tensor]) -> Tensor:
    """The sum over samples and columns of the squared rows.

    Args:
        a: The inputs, ``[N, T, K]``.
        columns: For each column the cotangents S, ``[N, T, O]``.

    Returns:
        A tensor ``[O, K]``.
    """
    _, positions, inputs = a.shape
    row = columns[0].shape[2] * inputs * a.element_size()
    if positions == 1:
        return squares([s.squeeze(1) for s in columns]).T @ a.squeeze(1).square()
    if by_tiles(a, positions):
        return native.square_sum(a, columns, 1)
    if row >= _LARGE_ROW and positions <= _FEW_POSITIONS:
        return _pairs(a, columns)
    if row >= _LARGE_ROW and not a.is_cuda:
        return _one_by_one(a, columns)
    return _chunks(a, columns, at_a_time(row, a))


def _pairs(a: Tensor, columns: Sequence[Tensor]) -> Tensor:
    """``sum_n sum_(t <= u) c s_t s_u (a_t a_u)``, with c = 2 where t < u."""
    first, second = torch.triu_indices(a.shape[1], a.shape[1], device=a.device)
    twice = torch.where(first == second, 1, 2).to(a.dtype).unsqueeze(1)

    def products(t: Tensor) -> Tensor:
        return t.index_select(1, first) * t.index_select(1, second)

    left = products(columns[0])
    for s in columns[1:]:
        left += products(s)
    left *= twice
    return left.flatten(0, 1).T @ products(a).flatten(0, 1)


def _one_by_one(a: Tensor, columns: Sequence[Tensor]) -> Tensor:
    total, row = (a.new_zeros(columns[0].shape[2], a.shape[2]) for _ in range(2))
    for s in columns:
        for a_n, s_n in zip(a, s, strict=True):
            torch.mm(s_n.T, a_n, out=row)
            total.addcmul_(row, row)
    return total


def _chunks(a: Tensor, columns: Sequence[Tensor], size: int) -> Tensor:
    total = a.new_zeros(columns[0].shape[2], a.shape[2])
    rows = a.new_empty(min(size, len(a)), *total.shape)
    for s in columns:
        for a_chunk, s_chunk in zip(a.split(size), s.split(size), strict=True):
            own = torch.bmm(s_chunk.mT, a_chunk, out=rows[: len(a_chunk)])
            total += own.square_().sum(0)
    return total


def squares(tensors: Sequence[Tensor]) -> Tensor:
    """The sum of the squares of tensors of one shape, element by element."""
    total = tensors[0].square()
    for t in tensors[1:]:
        total.addcmul_(t, t)
    return total
