"""Products, spectra and Kronecker helpers against dense matrices and BackPACK's functions."""

import pytest
import torch
from backpack import hessianfree
from backpack.hessianfree import ggnvp, hvp, lop, rop
from backpack.utils import kroneckers as theirs
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from curvserve.engine import kronecker, products, spectrum
from tests.engine import reference
from tests.engine.zoo import Case, make

assert hessianfree


def dense(blocks: list[list[Tensor]]) -> Tensor:
    return torch.cat([torch.cat(row, 1) for row in blocks])


def whole(case: Case) -> tuple[list[nn.Parameter], Tensor, Tensor]:
    """Parameters, Hessian and Gauss-Newton matrix over all of them, by plain loops."""
    parameters = list(reference.trained(case.model).values())
    outputs = reference.outputs_of(case.model, case.inputs)
    jacobian = torch.cat([j.flatten(1) for j in reference.jacobian(outputs, parameters)], 1)
    ggn = jacobian.T @ reference.loss_hessian(case.loss, outputs, case.targets) @ jacobian
    loss = case.loss(reference.outputs_of(case.model, case.inputs), case.targets)
    slopes = torch.autograd.grad(loss, parameters, create_graph=True)
    rows = []
    for unit in torch.cat([s.flatten() for s in slopes]):
        row = torch.autograd.grad(unit, parameters, retain_graph=True, allow_unused=True)
        pairs = zip(row, parameters, strict=True)
        rows.append(
            torch.cat([(torch.zeros_like(p) if r is None else r).flatten() for r, p in pairs])
        )
    return parameters, torch.stack(rows), ggn


def vectors_like(tensors: list[Tensor]) -> list[Tensor]:
    torch.manual_seed(5)
    return [torch.randn(t.shape, dtype=t.dtype) for t in tensors]


def flat(tensors: object) -> Tensor:
    return torch.cat([t.flatten() for t in tensors])


@pytest.mark.parametrize("name", ["mlp", "tied_weights", "seed_cnn", "mlp_squared_error"])
def test_products_with_hessian_and_gauss_newton_matrix(name: str) -> None:
    case = make(name)
    parameters, hessian, ggn = whole(case)
    output = reference.outputs_of(case.model, case.inputs)
    loss = case.loss(output, case.targets)
    v = vectors_like(parameters)
    h = products.hessian_vector_product(loss, parameters, v)
    g = products.ggn_vector_product(loss, output, case.model, v)
    torch.testing.assert_close(flat(h), hessian @ flat(v), rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(flat(g), ggn @ flat(v), rtol=1e-9, atol=1e-12)
    slopes = torch.autograd.grad(loss, parameters, create_graph=True)
    again = products.hessian_vector_product(loss, parameters, v, slopes)
    torch.testing.assert_close(flat(again), flat(h), rtol=1e-12, atol=1e-15)
    pushed = products.R_op(output, parameters, v)
    w = vectors_like([output])
    pulled = products.L_op(output, parameters, w)
    torch.testing.assert_close((pushed[0] * w[0]).sum(), (flat(pulled) * flat(v)).sum())
    for ours, peers in (
        (h, hvp.hessian_vector_product(loss, parameters, v)),
        (g, ggnvp.ggn_vector_product(loss, output, case.model, v)),
        (pushed, rop.R_op(output, parameters, v)),
        (pulled, lop.L_op(output, parameters, w)),
    ):
        torch.testing.assert_close(flat(ours), flat(peers), rtol=1e-12, atol=1e-14)


def test_what_does_not_depend_gives_zeros() -> None:
    x, y = (torch.randn(3).double().requires_grad_() for _ in range(2))
    f = (2 * x).sum()
    assert not products.hessian_vector_product(f, [x, y], [x.detach(), y.detach()])[1].any()
    assert not products.R_op([x * 2], [y], [y.detach()])[0].any()
    assert not products.L_op([x * 2], [y], [x.detach()])[0].any()
    assert not products.R_op(torch.ones(2), x, x.detach())[0].any()


def test_products_that_are_not_detached_can_be_differentiated() -> None:
    x = torch.randn(3).double().requires_grad_()
    v = torch.randn(3).double()
    (product,) = products.hessian_vector_product((x**4).sum(), x, v, detach=False)
    (slope,) = torch.autograd.grad(product.sum(), x)
    torch.testing.assert_close(slope, 24 * x.detach() * v)


@pytest.mark.parametrize(
    "call",
    [
        lambda x: products.R_op(x * 2, x, torch.ones(2)),
        lambda x: products.L_op(x * 2, x, [torch.ones(3), torch.ones(3)]),
        lambda x: products.hessian_vector_product((x**2).sum(), x, torch.ones(4)),
    ],
)
def test_vectors_of_other_shapes(call: object) -> None:
    with pytest.raises(ValueError, match=r"vectors of the shapes \[\(3,\)\] are needed, got"):
        call(torch.randn(3).requires_grad_())


def symmetric(size: int, seed: int, rank: int | None = None) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    root = torch.randn(size, rank or size, generator=generator, dtype=torch.float64)
    return root @ root.T


def product_of(matrix: Tensor, like: list[Tensor]) -> spectrum.Product:
    return lambda v: spectrum._shaped(matrix @ flat(v), like)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(st.integers(1, 12), st.integers(0, 2**31), st.data())
def test_lanczos_finds_the_largest_eigenvalues(size: int, seed: int, data: st.DataObject) -> None:
    matrix = symmetric(size, seed, data.draw(st.integers(1, size)))
    matrix = matrix - data.draw(st.sampled_from([0, 1, 5])) * torch.eye(size).double()
    count = data.draw(st.integers(1, size))
    like = [torch.zeros(size).double()]
    values, vectors = spectrum.lanczos_eigenvalues(
        product_of(matrix, like), like, count, tolerance=1e-10
    )
    expected = torch.linalg.eigvalsh(matrix).flip(0)[:count]
    torch.testing.assert_close(values, expected, rtol=1e-7, atol=1e-7)
    for value, (vector,) in zip(values, vectors, strict=True):
        torch.testing.assert_close(matrix @ vector, value * vector, rtol=1e-6, atol=1e-6)
        torch.testing.assert_close(vector.norm(), torch.ones(()).double())


@pytest.mark.parametrize("matrix", [torch.zeros(4, 4), torch.eye(4), 3 * torch.eye(4)])
def test_lanczos_on_matrices_with_one_eigenvalue(matrix: Tensor) -> None:
    like = [torch.zeros(2, 2).double()]
    values, _ = spectrum.lanczos_eigenvalues(product_of(matrix.double(), like), like, 3)
    torch.testing.assert_close(values, matrix.double().diagonal()[:3])


def test_lanczos_on_the_gauss_newton_matrix() -> None:
    case = make("mlp")
    parameters, _, ggn = whole(case)
    output = case.model(case.inputs)
    loss = case.loss(output, case.targets)
    values, _ = spectrum.lanczos_eigenvalues(
        lambda v: products.ggn_vector_product(loss, output, case.model, v), parameters, 3
    )
    torch.testing.assert_close(values, torch.linalg.eigvalsh(ggn).flip(0)[:3], rtol=1e-6, atol=0)


def test_limits_of_lanczos() -> None:
    like = [torch.zeros(30).double()]
    product = product_of(symmetric(30, 0), like)
    with pytest.raises(ValueError, match="between 1 and the matrix's 30 rows, got 31"):
        spectrum.lanczos_eigenvalues(product, like, 31)
    with pytest.raises(spectrum.NotConvergedError, match="2 products were not enough"):
        spectrum.lanczos_eigenvalues(product, like, 1, tolerance=1e-12, iterations=2)


def test_the_mean_over_all_signs_is_the_diagonal(monkeypatch: pytest.MonkeyPatch) -> None:
    matrix, like = symmetric(4, 1), [torch.zeros(4).double()]
    every = [torch.tensor([(n >> k) & 1 for k in range(4)]) for n in range(16)]
    drawn = iter(every)
    monkeypatch.setattr(torch, "randint", lambda *a, **k: next(drawn))
    (found,) = spectrum.hutchinson_diagonal(product_of(matrix, like), like, 16)
    torch.testing.assert_close(found, matrix.diagonal())


def test_traces() -> None:
    matrix, like = symmetric(6, 1), [torch.zeros(2, 3).double()]
    product = product_of(matrix, like)
    diagonal = spectrum.hutchinson_diagonal(product, like, 50, seed=3)
    trace = spectrum.hutchinson_trace(product, like, 50, seed=3)
    torch.testing.assert_close(diagonal[0].sum(), trace)
    assert abs(float(trace - matrix.trace())) < 0.3 * float(matrix.trace())
    with pytest.raises(ValueError, match="samples must be positive"):
        spectrum.hutchinson_trace(product, like, 0)


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
