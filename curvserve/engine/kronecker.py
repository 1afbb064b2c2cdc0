"""What one does with Kronecker factors ``[B, A]``, as KFAC stores them.

``B (x) A`` acts on a parameter ``[O, K]`` as a row-major vector: ``(B (x) A) vec(V) = vec(B V
A^T)``. The first functions have BackPACK's names.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

__all__ = [
    "apply_inv_kfac_mat_prod",
    "apply_kfac_mat_prod",
    "damped_inverse_product",
    "eigenvalues",
    "inv_kfac_mat_prod",
    "inv_kfacs",
    "kfac_mat_prod",
    "kfacs_to_mat",
    "logdet",
    "pi_damping",
    "two_kfacs_to_mat",
]

Product = Callable[[Tensor], Tensor]


def kfacs_to_mat(factors: Sequence[Tensor]) -> Tensor:
    """``A (x) B (x) ...`` as one matrix."""
    _check(factors)
    total = factors[0]
    for factor in factors[1:]:
        total = torch.kron(total, factor)
    return total


def two_kfacs_to_mat(A: Tensor, B: Tensor) -> Tensor:
    """``A (x) B`` as one matrix."""
    return kfacs_to_mat([A, B])


def kfac_mat_prod(factors: Sequence[Tensor]) -> Product:
    """The product ``(A (x) B (x) ...) M`` as a function of M ``[D, columns]``, or of ``[D]``."""
    _check(factors)

    def product(mat: Tensor) -> Tensor:
        size = 1
        for factor in factors:
            size *= factor.shape[1]
        if mat.shape[0] != size:
            raise ValueError(f"a matrix of {size} rows is needed, got {tuple(mat.shape)}")
        result = mat.reshape(*[f.shape[1] for f in factors], -1)
        for axis, factor in enumerate(factors):
            result = torch.tensordot(factor, result, ([1], [axis])).movedim(0, axis)
        return result.reshape(-1, *mat.shape[1:])

    return product


def apply_kfac_mat_prod(factors: Sequence[Tensor], mat: Tensor) -> Tensor:
    """``(A (x) B (x) ...) M``."""
    return kfac_mat_prod(factors)(mat)


def inv_kfacs(
    factors: Sequence[Tensor], shift: float | Sequence[float] | None = None
) -> list[Tensor]:
    """The inverses ``(A + s I)^-1`` of symmetric factors.

    Args:
        factors: The factors.
        shift: s, one for all or one for each; none by default. Inverse eigenvalues are bounded by
            1e8 in size, as BackPACK has it.

    Returns:
        The inverses.

    Raises:
        ValueError: A factor is not symmetric, or the numbers of factors and shifts differ.
    """
    _check(factors, symmetric=True)
    shifts = _shifts(shift, len(factors))
    inverses = []
    for factor, s in zip(factors, shifts, strict=True):
        values, vectors = torch.linalg.eigh(factor)
        inverse = (1 / (values + s)).clamp(-1e8, 1e8)
        inverses.append((vectors * inverse) @ vectors.T)
    return inverses


def inv_kfac_mat_prod(
    factors: Sequence[Tensor], shift: float | Sequence[float] | None = None
) -> Product:
    """The product ``((A + s I)^-1 (x) (B + t I)^-1 (x) ...) M`` as a function of M."""
    return kfac_mat_prod(inv_kfacs(factors, shift))


def apply_inv_kfac_mat_prod(
    factors: Sequence[Tensor], mat: Tensor, shift: float | Sequence[float] | None = None
) -> Tensor:
    """``((A + s I)^-1 (x) (B + t I)^-1 (x) ...) M``."""
    return inv_kfac_mat_prod(factors, shift)(mat)


def damped_inverse_product(factors: Sequence[Tensor], damping: float) -> Product:
    """``(B (x) A + damping I)^-1 v`` exactly, by the factors' eigenvectors.

    Args:
        factors: Symmetric factors ``[B, A]``, or ``[B]``.
        damping: Added to the eigenvalues of the product.

    Returns:
        A function of v, of the parameter's shape or any other with as many elements.

    Raises:
        ValueError: A factor is not symmetric, or the damped matrix is not positive definite.
    """
    _check(factors, symmetric=True)
    pairs = [torch.linalg.eigh(factor) for factor in factors]
    values = _outer([value for value, _ in pairs]) + damping
    if not bool((values > 0).all()):
        raise ValueError(
            f"with damping {damping:g} the smallest eigenvalue is {float(values.min()):.3g}: "
            "a positive one is needed"
        )
    forth = kfac_mat_prod([vectors.T.contiguous() for _, vectors in pairs])
    back = kfac_mat_prod([vectors for _, vectors in pairs])

    def product(vector: Tensor) -> Tensor:
        return back(forth(vector.reshape(-1)) / values).reshape(vector.shape)

    return product


def pi_damping(factors: Sequence[Tensor], damping: float) -> tuple[float, ...]:
    """Shifts for :func:`inv_kfacs` that stand for a damping of the whole product.

    ``(pi sqrt(damping), sqrt(damping) / pi)`` for the second and first factor of ``[B, A]`` with
    ``pi^2 = (tr A / dim A) / (tr B / dim B)``. (Martens and Grosse 2015, section 6.3.)

    Args:
        factors: ``[B, A]``, or ``[B]``.
        damping: The damping of the product.

    Returns:
        The shift of each factor.

    Raises:
        ValueError: There are more than two factors, or a trace is not positive.
    """
    if len(factors) == 1:
        return (damping,)
    if len(factors) != 2:
        raise ValueError(f"one or two factors are needed, got {len(factors)}")
    means = [float(f.diagonal().mean()) for f in factors]
    if min(means) <= 0:
        raise ValueError("the trace of a factor is not positive")
    pi = (means[1] / means[0]) ** 0.5
    return (damping**0.5 / pi, damping**0.5 * pi)


def eigenvalues(factors: Sequence[Tensor]) -> Tensor:
    """All eigenvalues of the Kronecker product of symmetric factors, ascending."""
    _check(factors, symmetric=True)
    return _outer([torch.linalg.eigvalsh(f) for f in factors]).sort().values


def logdet(factors: Sequence[Tensor], damping: float = 0.0) -> Tensor:
    """``log det(B (x) A + damping I)``.

    Raises:
        ValueError: A factor is not symmetric, or the matrix is not positive definite.
    """
    values = eigenvalues(factors) + damping
    if not bool((values > 0).all()):
        raise ValueError(f"the smallest eigenvalue is {float(values.min()):.3g}, not positive")
    return values.log().sum()


def _outer(values: Sequence[Tensor]) -> Tensor:
    total = values[0]
    for value in values[1:]:
        total = torch.outer(total, value).flatten()
    return total


def _shifts(shift: float | Sequence[float] | None, count: int) -> list[float]:
    if shift is None:
        return [0.0] * count
    if isinstance(shift, int | float):
        return [float(shift)] * count
    if len(shift) != count:
        raise ValueError(f"{count} factors need as many shifts, got {len(shift)}")
    return list(shift)


def _check(factors: Sequence[Tensor], symmetric: bool = False) -> None:
    if not factors:
        raise ValueError("at least one factor is needed")
    for factor in factors:
        if factor.dim() != 2:
            raise ValueError(f"factors are matrices, got one of shape {tuple(factor.shape)}")
        if symmetric and not _symmetric(factor):
            raise ValueError(f"a symmetric factor is needed, got {tuple(factor.shape)}")


def _symmetric(factor: Tensor) -> bool:
    if factor.shape[0] != factor.shape[1]:
        return False
    largest = float(factor.abs().max()) if factor.numel() else 0.0
    return float((factor - factor.T).abs().max()) <= 1e-4 * largest
