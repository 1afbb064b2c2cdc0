"""Kronecker helpers against dense matrices and BackPACK's functions."""

import pytest
import torch
from backpack.utils import kroneckers as theirs
from torch import Tensor

from curvserve.engine import kronecker


def symmetric(size: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    root = torch.randn(size, size, generator=generator, dtype=torch.float64)
    return root @ root.T


FACTORS = [symmetric(3, 0), symmetric(4, 1)]


def test_kronecker_functions_are_the_peers() -> None:
    torch.manual_seed(0)
    mat = torch.randn(12, 5).double()
    for ours, peers in (
        (kronecker.kfacs_to_mat(FACTORS), theirs.kfacs_to_mat(FACTORS)),
        (kronecker.two_kfacs_to_mat(*FACTORS), theirs.two_kfacs_to_mat(*FACTORS)),
        (kronecker.apply_kfac_mat_prod(FACTORS, mat), theirs.apply_kfac_mat_prod(FACTORS, mat)),
        (
            kronecker.apply_inv_kfac_mat_prod(FACTORS, mat, 0.1),
            theirs.apply_inv_kfac_mat_prod(FACTORS, mat, 0.1),
        ),
        (
            kronecker.apply_inv_kfac_mat_prod(FACTORS, mat[:, 0], [0.1, 0.2]),
            theirs.apply_inv_kfac_mat_prod(FACTORS, mat[:, 0], [0.1, 0.2]),
        ),
    ):
        torch.testing.assert_close(ours, peers, rtol=1e-10, atol=1e-12)


def test_the_damped_inverse_is_exact() -> None:
    matrix = kronecker.kfacs_to_mat(FACTORS) + 0.3 * torch.eye(12).double()
    v = torch.randn(3, 4).double()
    found = kronecker.damped_inverse_product(FACTORS, 0.3)(v)
    torch.testing.assert_close(found.flatten(), torch.linalg.solve(matrix, v.flatten()))
    torch.testing.assert_close(kronecker.logdet(FACTORS, 0.3), torch.logdet(matrix))
    values = torch.linalg.eigvalsh(kronecker.kfacs_to_mat(FACTORS))
    torch.testing.assert_close(kronecker.eigenvalues(FACTORS), values, rtol=1e-8, atol=1e-10)


def test_damping_is_split_by_the_traces() -> None:
    b, a = kronecker.pi_damping(FACTORS, 0.04)
    means = [float(f.trace()) / len(f) for f in FACTORS]
    assert b * a == pytest.approx(0.04)
    assert a / b == pytest.approx(means[1] / means[0])
    assert kronecker.pi_damping(FACTORS[:1], 0.04) == (0.04,)


@pytest.mark.parametrize(
    ("call", "match"),
    [
        (lambda: kronecker.kfacs_to_mat([]), "at least one factor"),
        (lambda: kronecker.kfacs_to_mat([torch.ones(3)]), "factors are matrices"),
        (lambda: kronecker.inv_kfacs([torch.ones(2, 3)]), "a symmetric factor is needed"),
        (lambda: kronecker.inv_kfacs([torch.tensor([[1.0, 2.0], [0.0, 1.0]])]), "symmetric"),
        (lambda: kronecker.inv_kfacs(FACTORS, [1.0]), "2 factors need as many shifts, got 1"),
        (lambda: kronecker.apply_kfac_mat_prod(FACTORS, torch.ones(5)), "12 rows is needed"),
        (lambda: kronecker.damped_inverse_product([-torch.eye(2)], 0.5), "a positive one"),
        (lambda: kronecker.logdet([torch.zeros(2, 2)]), "not positive"),
        (lambda: kronecker.pi_damping([torch.zeros(2, 2)] * 2, 1.0), "not positive"),
        (lambda: kronecker.pi_damping(FACTORS * 2, 1.0), "one or two factors"),
    ],
)
def test_bad_factors(call: object, match: str) -> None:
    with pytest.raises(ValueError, match=match):
        call()
