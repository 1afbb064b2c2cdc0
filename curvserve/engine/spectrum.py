"""Eigenvalues, traces and diagonals of matrices that are known by their products only.

A *product* takes a list of tensors and returns one of the same shapes, as the functions of
:mod:`curvserve.engine.products` do:

    product = lambda v: ggn_vector_product(loss, output, model, v)
"""

from collections.abc import Callable, Sequence
from typing import TypeAlias

import torch
from torch import Tensor

from curvserve.engine.errors import EngineError

__all__ = [
    "NotConvergedError",
    "hutchinson_diagonal",
    "hutchinson_trace",
    "lanczos_eigenvalues",
]

Product: TypeAlias = Callable[[list[Tensor]], Sequence[Tensor]]


class NotConvergedError(EngineError):
    """An iteration reached its limit before its tolerance."""


def lanczos_eigenvalues(
    product: Product,
    like: Sequence[Tensor],
    count: int = 1,
    *,
    tolerance: float = 1e-6,
    iterations: int | None = None,
    seed: int = 0,
) -> tuple[Tensor, list[list[Tensor]]]:
    """The largest eigenvalues of a symmetric matrix, with their eigenvectors.

    Lanczos' iteration with full reorthogonalisation; a matrix with repeated eigenvalues is seen
    with each of them once, unless the iteration breaks down and starts again. (Lanczos 1950;
    Golub and Van Loan, Matrix computations, section 10.1.)

    Args:
        product: The product with the matrix.
        like: Tensors of the shapes of a vector (the parameters).
        count: How many eigenvalues.
        tolerance: The largest residual ``|A u - l u|``, relative to the largest eigenvalue's size.
        iterations: The most products; by default as many as the matrix has rows.
        seed: Seeds the first vector.

    Returns:
        The eigenvalues in descending order, ``[count]``, and for each its unit eigenvector as a
        list of tensors.

    Raises:
        ValueError: ``count`` is not between 1 and the number of rows.
        NotConvergedError: The tolerance was not reached.
    """
    size = sum(t.numel() for t in like)
    if not 1 <= count <= size:
        raise ValueError(f"count must be between 1 and the matrix's {size} rows, got {count}")
    limit = size if iterations is None else min(iterations, size)
    generator = torch.Generator().manual_seed(seed)
    basis: list[Tensor] = []
    images: list[Tensor] = []
    vector = _random(like, generator)
    values, vectors = torch.zeros(0), torch.zeros(0)
    while len(basis) < limit:
        vector = _orthogonal(vector, basis, like, generator)
        basis.append(vector)
        images.append(_flat(product(_shaped(vector, like))))
        vector = images[-1]
        q, image = torch.stack(basis, 1), torch.stack(images, 1)
        small = q.T @ image
        values, inner = torch.linalg.eigh((small + small.T) / 2)
        values, inner = values.flip(0)[:count], inner.flip(1)[:, :count]
        vectors = q @ inner
        residuals = (image @ inner - vectors * values).norm(dim=0)
        scale = float(values.abs().max())
        done = float(residuals.max()) <= tolerance * max(scale, torch.finfo(q.dtype).tiny)
        if len(basis) >= count and done and len(basis) > min(size - 1, count):
            break
    else:
        if limit < size:
            raise NotConvergedError(
                f"{limit} products were not enough for a residual of {tolerance:g}: it is "
                f"{float(residuals.max()) / max(scale, 1e-300):.3g}; allow more iterations"
            )
    return values, [_shaped(v, like) for v in vectors.T]


def hutchinson_trace(
    product: Product, like: Sequence[Tensor], samples: int = 1, *, seed: int = 0
) -> Tensor:
    """An unbiased estimate of the trace, the mean of ``v^T A v`` over random signs v.

    Args:
        product: The product with the matrix.
        like: Tensors of the shapes of a vector.
        samples: How many v; the variance falls as one over it.
        seed: Seeds the signs.

    Returns:
        A scalar. (Hutchinson 1989.)
    """
    return torch.stack(
        [d.sum() for d in hutchinson_diagonal(product, like, samples, seed=seed)]
    ).sum()


def hutchinson_diagonal(
    product: Product, like: Sequence[Tensor], samples: int = 1, *, seed: int = 0
) -> list[Tensor]:
    """An unbiased estimate of the diagonal, the mean of ``v * (A v)`` over random signs v.

    Args:
        product: The product with the matrix.
        like: Tensors of the shapes of a vector.
        samples: How many v.
        seed: Seeds the signs.

    Returns:
        A tensor of each shape. (Bekas, Kokiopoulou, Saad 2007.)

    Raises:
        ValueError: ``samples`` is not positive.
    """
    if samples < 1:
        raise ValueError(f"samples must be positive, got {samples}")
    generator = torch.Generator().manual_seed(seed)
    total = [torch.zeros_like(t, requires_grad=False) for t in like]
    for _ in range(samples):
        signs = [
            (2 * torch.randint(2, t.shape, generator=generator) - 1).to(t.detach()) for t in like
        ]
        for sum_, v, image in zip(total, signs, product(signs), strict=True):
            sum_ += v * image / samples
    return total


def _random(like: Sequence[Tensor], generator: torch.Generator) -> Tensor:
    size = sum(t.numel() for t in like)
    return torch.randn(size, generator=generator, dtype=torch.float64).to(like[0].detach())


def _orthogonal(
    vector: Tensor, basis: list[Tensor], like: Sequence[Tensor], generator: torch.Generator
) -> Tensor:
    """The unit vector along the part that is new; a random one where nothing is."""
    before = vector.norm()
    for _ in range(2):  # twice is enough
        for other in basis:
            vector = vector - (other @ vector) * other
    length = vector.norm()
    if float(length) <= 1e3 * torch.finfo(vector.dtype).eps * float(before):
        return _orthogonal(_random(like, generator), basis, like, generator)
    unit: Tensor = vector / length
    return unit


def _flat(tensors: Sequence[Tensor]) -> Tensor:
    return torch.cat([t.detach().reshape(-1) for t in tensors])


def _shaped(vector: Tensor, like: Sequence[Tensor]) -> list[Tensor]:
    pieces = vector.split([t.numel() for t in like])
    return [piece.view(t.shape) for piece, t in zip(pieces, like, strict=True)]
