"""Eigenvalues, traces and diagonals of matrices known by their products, against dense ones."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from curvserve.engine import spectrum
from curvserve.engine.errors import NonFiniteError
from curvserve.engine.products import Product, ggn_operator, hessian_operator
from tests.engine.test_functions import whole
from tests.engine.zoo import make


def with_eigenvalues(values: list[float], seed: int = 0) -> Tensor:
    """A random symmetric matrix with these eigenvalues."""
    generator = torch.Generator().manual_seed(seed)
    size = len(values)
    q = torch.linalg.qr(torch.randn(size, size, generator=generator, dtype=torch.float64)).Q
    return q @ torch.diag(torch.tensor(values, dtype=torch.float64)) @ q.T


class Counted:
    """The product with a matrix over two tensors; counts how often it is asked for."""

    def __init__(self, matrix: Tensor, dtype: torch.dtype = torch.float64) -> None:
        self.matrix, self.count, half = matrix.to(dtype), 0, len(matrix) // 2
        self.like = [
            torch.zeros(half, 1, dtype=dtype),
            torch.zeros(len(matrix) - half, dtype=dtype),
        ]

    def __call__(self, v: list[Tensor]) -> tuple[Tensor, ...]:
        self.count += 1
        assert [t.shape for t in v] == [t.shape for t in self.like]
        found = self.matrix @ torch.cat([t.flatten() for t in v])
        return tuple(
            part.view_as(t) for part, t in zip(found.split([t.numel() for t in v]), v, strict=True)
        )


def check(product: Product, like: list[Tensor], matrix: Tensor, count: int, error: float) -> None:
    values, vectors = spectrum.lanczos_eigenvalues(product, like, count)
    expected = torch.linalg.eigvalsh(matrix)
    norm = max(float(expected.abs().max()), 1e-30)
    assert float((values - expected.flip(0)[:count]).abs().max()) <= error * norm
    assert [[t.shape for t in vector] for vector in vectors] == [[t.shape for t in like]] * count
    columns = torch.stack([torch.cat([t.flatten() for t in v]) for v in vectors], 1).double()
    residuals = matrix @ columns - columns * values
    assert float(residuals.norm(dim=0).max()) <= max(1e-6, error) * norm * 1.01
    identity = torch.eye(count).double()
    assert float((columns.T @ columns - identity).abs().max()) < max(1e-12, error)


@settings(max_examples=100, deadline=None, derandomize=True)
@given(
    st.lists(st.sampled_from([-2.0, -1.0, -1e-3, 0.0, 1e-3, 0.999, 1.0]), min_size=1, max_size=14),
    st.integers(0, 2**31),
    st.data(),
)
def test_lanczos_finds_every_eigenvalue_as_often_as_it_occurs(
    values: list[float], seed: int, data: st.DataObject
) -> None:
    matrix = with_eigenvalues(values, seed)
    product = Counted(matrix)
    check(product, product.like, matrix, data.draw(st.integers(1, len(values))), 1e-9)
    assert product.count <= len(values)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(st.integers(1, 40), st.integers(0, 2**31), st.data())
def test_lanczos_on_random_symmetric_matrices(size: int, seed: int, data: st.DataObject) -> None:
    generator = torch.Generator().manual_seed(seed)
    root = torch.randn(size, size, generator=generator, dtype=torch.float64)
    product = Counted(root + root.T)
    check(product, product.like, root + root.T, data.draw(st.integers(1, min(size, 5))), 1e-9)


@pytest.mark.parametrize("count", [1, 2, 3])
@pytest.mark.parametrize(
    "values",
    [
        [1.0, 1.0 - 1e-4, *[0.5] * 50, *torch.linspace(0, 0.01, 148).tolist()],
        [1.0, 1.0 - 1e-8, *torch.linspace(-1, 0.9, 198).tolist()],
        [5.0, 5.0, 1.0, *[0.0] * 197],
        torch.linspace(-3, -1, 200).tolist(),
    ],
    ids=["close", "closer than the tolerance", "repeated", "negative definite"],
)
def test_lanczos_needs_fewer_products_than_rows(values: list[float], count: int) -> None:
    matrix = with_eigenvalues(values)
    product = Counted(matrix)
    check(product, product.like, matrix, count, 1e-6)
    assert product.count < 170


def test_lanczos_in_single_and_half_precision() -> None:
    matrix = with_eigenvalues([3.0, 2.0, *torch.linspace(-1, 1, 48).tolist()])
    for dtype, error in ((torch.float32, 1e-5), (torch.bfloat16, 0.05)):
        product = Counted(matrix, dtype)
        values, vectors = spectrum.lanczos_eigenvalues(product, product.like, 2)
        assert float((values - torch.tensor([3.0, 2.0])).abs().max()) < error
        assert all(t.dtype == dtype for vector in vectors for t in vector)


def test_spectrum_of_a_model() -> None:
    case = make("mlp")
    parameters, hessian, ggn = whole(case)
    output = case.model(case.inputs)
    loss = case.loss(output, case.targets)
    for operator, matrix in (
        (hessian_operator(loss, parameters), hessian),
        (ggn_operator(loss, output, parameters), ggn),
    ):
        check(operator, parameters, matrix, 3, 1e-9)
        lowest, _ = spectrum.lanczos_eigenvalues(
            lambda v, a=operator: [-t for t in a(v)], parameters
        )
        torch.testing.assert_close(-lowest[0], torch.linalg.eigvalsh(matrix)[0], atol=1e-9, rtol=0)
        diagonal = spectrum.hutchinson_diagonal(operator, parameters, 400)
        assert [d.shape for d in diagonal] == [p.shape for p in parameters]
        off = matrix - torch.diag(matrix.diagonal())
        found = torch.cat([d.flatten() for d in diagonal])
        deviations = (off.square().sum(1) / 400).sqrt()
        assert bool(((found - matrix.diagonal()).abs() <= 5 * deviations + 1e-12).all())
        trace = spectrum.hutchinson_trace(operator, parameters, 400)
        deviation = math.sqrt(2 * float(off.square().sum()) / 400)
        assert abs(float(trace - matrix.trace())) < 4 * deviation


def test_what_lanczos_refuses() -> None:
    product = Counted(with_eigenvalues(torch.linspace(0, 1, 30).tolist()))
    for count, limit, match in (
        (31, None, "between 1 and the 30 products .* 30 rows, got 31"),
        (0, None, "got 0"),
        (3, 2, "between 1 and the 2 products .* got 3"),
    ):
        with pytest.raises(ValueError, match=match):
            spectrum.lanczos_eigenvalues(product, product.like, count, max_products=limit)
    with pytest.raises(ValueError, match="0 rows"):
        spectrum.lanczos_eigenvalues(product, [])
    assert product.count == 0
    with pytest.raises(
        spectrum.NotConvergedError, match="4 products were not enough .* allow more"
    ):
        spectrum.lanczos_eigenvalues(product, product.like, 2, max_products=5)
    assert product.count == 4
    product.matrix[3, 3] = torch.nan
    with pytest.raises(NonFiniteError, match="a product with the matrix holds NaN"):
        spectrum.lanczos_eigenvalues(product, product.like)


@settings(max_examples=30, deadline=None, derandomize=True)
@given(st.integers(1, 5), st.integers(0, 2**31))
def test_the_mean_over_all_signs_is_the_diagonal(size: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    root = torch.randn(size, size, generator=generator, dtype=torch.float64)
    product = Counted(root + root.T)
    signs = torch.cartesian_prod(*[torch.tensor([-1.0, 1.0]).double()] * size).view(-1, size)
    half = size // 2
    found = spectrum.diagonal_estimate(product, [(v[:half, None], v[half:]) for v in signs])
    torch.testing.assert_close(torch.cat([d.flatten() for d in found]), product.matrix.diagonal())


def test_one_sample_is_exact_for_a_diagonal_matrix() -> None:
    product = Counted(torch.diag(torch.arange(6.0).double()))
    diagonal = spectrum.hutchinson_diagonal(product, product.like)
    assert torch.equal(torch.cat([d.flatten() for d in diagonal]), torch.arange(6.0).double())
    assert float(spectrum.hutchinson_trace(product, product.like)) == 15


def test_the_seed_decides_the_signs() -> None:
    product = Counted(with_eigenvalues([1.0, 2.0, 3.0, 4.0, 5.0]))
    first, again, other = (
        spectrum.hutchinson_diagonal(product, product.like, 3, seed=seed) for seed in (3, 3, 4)
    )
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(first, other, strict=True))
    trace = spectrum.hutchinson_trace(product, product.like, 3, seed=3)
    torch.testing.assert_close(trace, sum(d.sum() for d in first))


@pytest.mark.parametrize("estimate", [spectrum.hutchinson_trace, spectrum.hutchinson_diagonal])
def test_samples_are_positive(estimate: object) -> None:
    product = Counted(torch.eye(3))
    with pytest.raises(ValueError, match="samples must be positive, got 0"):
        estimate(product, product.like, 0)
