"""Eigenvalues, traces and diagonals of symmetric matrices that are known by their products only.

Such as the operators of :mod:`curvserve.engine.products`:

    >>> hessian = hessian_operator(loss, parameters)
    >>> values, vectors = lanczos_eigenvalues(hessian, parameters, count=3)
"""

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from curvserve.engine.draws import random_signs
from curvserve.engine.errors import EngineError, NonFiniteError
from curvserve.engine.products import Product

__all__ = [
    "NotConvergedError",
    "diagonal_estimate",
    "hutchinson_diagonal",
    "hutchinson_trace",
    "lanczos_eigenvalues",
]


class NotConvergedError(EngineError):
    """An iteration reached its limit before its tolerance."""


def lanczos_eigenvalues(
    product: Product,
    like: Sequence[Tensor],
    count: int = 1,
    *,
    tolerance: float = 1e-6,
    max_products: int | None = None,
    seed: int = 0,
) -> tuple[Tensor, list[list[Tensor]]]:
    """The algebraically largest eigenvalues of a symmetric matrix A, with their eigenvectors.

    Block Lanczos with full reorthogonalisation: the block has ``count`` columns, so that repeated
    eigenvalues are found as often as they occur. With k products it holds k vectors and takes
    O(k^2) operations on each row. The smallest are those of ``-A``, negated. (Lanczos 1950; Golub
    and Underwood 1977.)

    Args:
        product: The product with the matrix.
        like: Tensors of the shapes of a vector (the parameters).
        count: How many eigenvalues.
        tolerance: The largest residual ``|A u - l u|``, relative to the largest eigenvalue in
            size; there is an eigenvalue within that of each one returned.
        max_products: The most products; by default as many as the matrix has rows.
        seed: Seeds the first block.

    Returns:
        The eigenvalues in descending order, ``[count]``, and for each its unit eigenvector as a
        list of tensors.

    Raises:
        ValueError: ``count`` is not between 1 and the number of rows, or more than
            ``max_products``.
        NonFiniteError: A product holds NaN or infinity.
        NotConvergedError: The tolerance was not reached.
    """
    size = sum(t.numel() for t in like)
    limit = size if max_products is None else min(max_products, size)
    if not 1 <= count <= limit:
        raise ValueError(
            f"count must be between 1 and the {limit} products that are allowed of a matrix with "
            f"{size} rows, got {count}"
        )
    block = _orthonormal(_random(like, count, seed))
    basis, matrix = block[:, :0], block.new_zeros(0, 0)
    while True:
        width, basis = block.shape[1], torch.cat([basis, block], 1)
        image = torch.stack([_flat(product(_shaped(v, like)), block) for v in block.T], 1)
        if not bool(image.isfinite().all()):
            raise NonFiniteError("a product with the matrix holds NaN or infinity")
        columns = basis.T @ image
        rest = image - basis @ columns
        matrix = torch.cat([torch.cat([matrix, columns[:-width].T]), columns], 1)
        values, inner = torch.linalg.eigh(matrix)
        top = inner[:, -count:].flip(1)
        residual = float((rest @ top[-width:]).norm(dim=0).max())
        scale, made = float(values.abs().max()), basis.shape[1]
        if residual <= tolerance * scale or made == size:
            vectors = basis @ top
            return values[-count:].flip(0), [_shaped(v, like) for v in vectors.T]
        if made + width > limit < size:
            raise NotConvergedError(
                f"{made} products were not enough for a residual of {tolerance:g}: it is "
                f"{residual / scale:.3g}; allow more"
            )
        block = _orthonormal(rest, basis)[:, : size - made]


def hutchinson_trace(
    product: Product, like: Sequence[Tensor], samples: int = 1, *, seed: int = 0
) -> Tensor:
    """An unbiased estimate of the trace, the mean of ``v^T A v`` over random signs v.

    Its variance is ``2 sum_{i != j} A_ij^2 / samples``. (Hutchinson 1989.)

    Args:
        product: The product with the matrix A.
        like: Tensors of the shapes of a vector (the parameters).
        samples: How many v.
        seed: Seeds the signs.

    Returns:
        A scalar.

    Raises:
        ValueError: ``samples`` is not positive.
    """
    diagonal = hutchinson_diagonal(product, like, samples, seed=seed)
    return torch.stack([d.sum() for d in diagonal]).sum()


def hutchinson_diagonal(
    product: Product, like: Sequence[Tensor], samples: int = 1, *, seed: int = 0
) -> list[Tensor]:
    """An unbiased estimate of the diagonal, the mean of ``v * (A v)`` over random signs v.

    The variance of element i is ``sum_{j != i} A_ij^2 / samples``. (Bekas, Kokiopoulou, Saad 2007.)

    Args:
        product: The product with the matrix A.
        like: Tensors of the shapes of a vector (the parameters).
        samples: How many v.
        seed: Seeds the signs.

    Returns:
        A tensor of each shape.

    Raises:
        ValueError: ``samples`` is not positive.
    """
    if samples < 1:
        raise ValueError(f"samples must be positive, got {samples}")
    generator = torch.Generator().manual_seed(seed)
    return diagonal_estimate(product, (random_signs(like, generator) for _ in range(samples)))


def diagonal_estimate(product: Product, vectors: Iterable[Sequence[Tensor]]) -> list[Tensor]:
    """The mean of ``v * (A v)`` over given vectors v."""
    total: list[Tensor] = []
    for count, v in enumerate(vectors, 1):
        terms = [a * b.detach() for a, b in zip(v, product(v), strict=True)]
        # A running mean, for the number of vectors is not known.
        total = [t + (term - t) / count for t, term in zip(total or terms, terms, strict=True)]
    return total


def _random(like: Sequence[Tensor], count: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    size = sum(t.numel() for t in like)
    drawn = torch.randn(size, count, generator=generator, dtype=torch.float64)
    return drawn.to(like[0].device, torch.promote_types(like[0].dtype, torch.float32))


def _orthonormal(block: Tensor, basis: Tensor | None = None) -> Tensor:
    """Orthonormal columns that span the block's part beyond the basis, random ones where none is.

    The second round makes up for what cancellation in the first leaves, and where the block has
    nothing beyond the basis takes what rounding left as a random direction.
    """
    for _ in range(2):
        if basis is not None:
            block = block - basis @ (basis.T @ block)
        block = torch.linalg.qr(block).Q
    return block


def _flat(tensors: Sequence[Tensor], like: Tensor) -> Tensor:
    return torch.cat([t.detach().reshape(-1).to(like) for t in tensors])


def _shaped(vector: Tensor, like: Sequence[Tensor]) -> list[Tensor]:
    pieces = vector.split([t.numel() for t in like])
    return [piece.view(t.shape).to(t) for piece, t in zip(pieces, like, strict=True)]
