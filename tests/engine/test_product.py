"""Every quantity on every kind of layer under every loss equals its definition, or is refused.

A cell is a kind of layer and a loss, and in it the quantities of one family. `make test` runs one
family in every second cell, so that each pair (quantity, layer) and (quantity, loss) occurs;
`make conformance` runs the whole product, with both reductions.
"""

from collections.abc import Callable, Iterator
from functools import cache
from itertools import cycle
from typing import Any

import pytest
import torch
from torch import Tensor

from curvserve.engine import backpack, extend
from curvserve.engine import extensions as e
from curvserve.engine.errors import NotAChainError, UncoveredParameterError, UnsupportedLossError
from curvserve.engine.linearised import Linearised
from curvserve.engine.losses import RULES
from curvserve.engine.products import Product
from curvserve.engine.quantities import EXTENSIONS, Quantity
from curvserve.engine.second_order import Pass
from tests.engine.definitions import TENSORS, Dense, Point, kronecker, matrix_blocks
from tests.engine.definitions_on_chains import averaged, positive_curvature
from tests.engine.kinds import KINDS, LOSSES, N, net
from tests.engine.reference import loss_gradient, loss_hessian, trained
from tests.engine.test_layers import LAYERS

DRAWS = 2
TOLERANCE = 1e-9

# Sequential nets: what is defined on chains is defined there, if each of its layers has a rule.
CHAINS = {
    "linear extra axes", "conv1d", "conv1d circular", "conv2d same", "conv2d valid",
    "conv2d depthwise", "conv3d", "conv3d replicate", "transposed 1d", "transposed 2d",
    "transposed 3d", "batch norm 1d", "batch norm of vectors", "batch norm 2d", "batch norm 3d",
    "group norm", "group norm of vectors", "instance norm", "instance norm 1d", "instance norm 3d",
    "layer norm", "rms norm", "rms norm of two axes", "prelu", "prelu of vectors",
    "prelu by channel", "embedding", "embedding bag", "embedding bag sum", "partly frozen",
}  # fmt: skip
# Of these, nets with a module that is neither linear nor elementwise in its input.
CURVED = {
    "group norm", "group norm of vectors", "instance norm", "instance norm 1d", "layer norm",
    "rms norm", "rms norm of two axes",
}  # fmt: skip
# Nets with a parameter of two or more axes that is not the matrix of a layer y_t = W a_t.
WITHOUT_FACTORS = {
    "conv1d", "conv2d depthwise", "conv3d", "transposed 1d", "layer norm", "rms norm of two axes",
    "embedding", "embedding bag", "embedding bag sum", "embedding bag max", "weight norm",
    "spectral norm", "orthogonal", "low rank", "rnn", "rnn relu, two layers", "lstm",
    "lstm projected", "lstm bidirectional", "gru", "gru bidirectional", "language model",
    "bare matrix", "called and used by a function",
}  # fmt: skip
# Their gates are not to be had from outside: see test_layers.
CELLS = {"rnn cell", "lstm cell", "gru cell"}
# Chains of norms and the like, whose vectors an averaged matrix has no factors for.
WITH_OTHER_VECTORS = CURVED | {
    "batch norm 1d", "batch norm of vectors", "batch norm 2d", "batch norm 3d", "instance norm 3d",
    "prelu", "prelu of vectors", "prelu by channel",
}  # fmt: skip


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """On matrices this small a second thread only waits."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@cache
def dense(kind: str, end: str) -> Dense:
    """Of a copy that the engine never sees."""
    model, x = net(kind, end)
    return Dense(model, x, N)


class Cell:
    """One kind of layer, one loss and one reduction."""

    def __init__(self, kind: str, loss: str, reduction: str) -> None:
        self.kind, self.loss, self.reduction = kind, loss, reduction
        spec = LOSSES[loss]
        self.spec = spec
        end = loss if spec.end() else "cross entropy"
        self.dense = dense(kind, end)
        self.model, self.inputs = net.__wrapped__(kind, end)
        extend(self.model)
        self.module = extend(spec.make(reduction))
        f = self.dense.outputs
        with torch.random.fork_rng():
            torch.manual_seed(1)
            self.targets = spec.targets(f)
        self.arguments = self.targets if isinstance(self.targets, tuple) else (self.targets,)
        self.point = self._point(f)
        self.computed: set[type[Quantity]] = set()

    def _point(self, f: Tensor) -> Point:
        def undivided(f: Tensor, _: Any) -> Tensor:
            return self.spec.make("sum")(f, *self.arguments)

        def value(f: Tensor, _: Any) -> Tensor:
            return self.spec.make(self.reduction)(f, *self.arguments)

        def matrix(f: Tensor, _: Any) -> Tensor:
            exact = self.spec.exact or self.spec.make
            return exact(self.reduction)(f, *self.arguments)

        return Point(
            self.dense,
            loss_gradient(value, f, None).flatten(),
            loss_hessian(value, f, None),
            loss_hessian(matrix, f, None),
            float(undivided(f, None) / value(f, None)),
        )

    def run(self, *extensions: Quantity, seed: int = 0) -> None:
        torch.manual_seed(seed)
        with backpack(*extensions):
            self.module(self.model(self.inputs), *self.arguments).backward()
        self.computed |= {type(q) for q in extensions}

    def found(self, field: str) -> dict[str, Any]:
        return {name: getattr(p, field) for name, p in trained(self.model).items()}

    def columns(self, *fields: str) -> list[Tensor]:
        """The drawn columns ``[M, K]`` behind roots ``[M, N, *p]``, which must be ``J^T s``."""
        return [self._columns(self.found(field)) for field in fields]

    def _columns(self, roots: dict[str, Tensor]) -> Tensor:
        rows = torch.cat([v.flatten(2) for v in roots.values()], 2)  # [M, N, P]
        found = torch.zeros(len(rows), len(self.dense.owner)).double()
        for n in range(N):
            own = self.dense.owner == n
            jacobian = self.dense.jacobian[own]
            found[:, own] = rows[:, n] @ torch.linalg.pinv(jacobian)
            equal(found[:, own] @ jacobian, rows[:, n])
        return found


def equal(found: Tensor, expected: Tensor, scale: float | None = None) -> None:
    assert found.shape == expected.shape
    largest = float(expected.abs().max()) if scale is None else scale
    assert float((found - expected).abs().max()) <= TOLERANCE * largest + 1e-13


def equal_tensors(cell: Cell, field: str, expected: Tensor) -> None:
    """The elements of all parameters, in their order on the last axis."""
    found = cell.found(field)
    least = expected.dim() - 1
    for name, p in trained(cell.model).items():
        shape = (N,) if field == "batch_l2" else (*expected.shape[:-1], *p.shape)
        assert found[name].shape == shape
    flat = [v.unsqueeze(-1) if field == "batch_l2" else v.flatten(least) for v in found.values()]
    equal(torch.cat(flat, -1), expected)


def equal_factors(cell: Cell, field: str, expected: dict[str, list[Tensor]]) -> None:
    for name, factors in cell.found(field).items():
        assert len(factors) == len(expected[name])
        for found, wanted in zip(factors, expected[name], strict=True):
            equal(found, wanted)


def equal_products(cell: Cell, field: str, expected: dict[str, Tensor]) -> None:
    largest = max(float(block.abs().max()) for block in expected.values())
    for name, p in trained(cell.model).items():
        vectors = torch.randn(2, *p.shape).double()
        product = getattr(p, field)(vectors)
        wanted = (vectors.flatten(1) @ expected[name]).view_as(vectors)
        equal(product, wanted, largest * p.numel())
        equal(getattr(p, field)(vectors[1]), product[1])


def root(field: str, draws: int = DRAWS) -> Quantity:
    return named(e.SqrtGGNMC(draws), field)


def first_order(cell: Cell) -> None:
    cell.run(e.BatchGrad(), e.BatchL2Grad(), e.SumGradSquared(), e.Variance(),
             e.DiagEmpiricalFisher())  # fmt: skip
    for field in ("grad_batch", "batch_l2", "sum_grad_squared", "variance"):
        equal_tensors(cell, field, TENSORS[field](cell.point))
    equal_tensors(cell, "diag_empirical_fisher", TENSORS["diag_empirical_fisher"](cell.point))
    equal_tensors(cell, "grad", TENSORS["grad_batch"](cell.point).sum(0))


def exact(cell: Cell) -> None:
    made = [e.DiagGGNExact(), e.BatchDiagGGNExact(), e.SqrtGGNExact(), e.GGNMP()]
    if not cell.spec.known:
        return refuse(cell, made, UnsupportedLossError)
    cell.run(*made)
    for field in ("diag_ggn_exact", "diag_ggn_exact_batch"):
        equal_tensors(cell, field, TENSORS[field](cell.point))
    for name, shares in cell.point.blocks(cell.point.ggn_shares):
        rows = cell.found("sqrt_ggn_exact")[name].flatten(2)
        equal(torch.einsum("vnp,vnq->npq", rows, rows), shares)
    equal_products(cell, "ggnmp", dict(cell.point.blocks(cell.point.ggn_shares.sum(0))))


def sampled(cell: Cell) -> None:
    """The draws are seen in the roots, which are drawn in the same order from the same seed."""
    cell.run(e.DiagGGNMC(DRAWS), e.BatchDiagGGNMC(DRAWS), e.SqrtGGNMC(DRAWS))
    cell.run(root("first"), root("second"), root("third"))
    first, second, third = cell.columns("first", "second", "third")
    equal_tensors(cell, "diag_ggn_mc", TENSORS["diag_ggn_exact"](cell.point.sampled(first)))
    batch = TENSORS["diag_ggn_exact_batch"](cell.point.sampled(second))
    equal_tensors(cell, "diag_ggn_mc_batch", batch)
    equal(cell.columns("sqrt_ggn_mc")[0], third)
    check_draws(cell, first)


def check_draws(cell: Cell, columns: Tensor) -> None:
    """Gradients at drawn targets; else, with random signs e, ``s^T H^+ s = e^T e`` is known."""
    f, spec = cell.dense.outputs, cell.spec
    if spec.draw is not None:
        torch.manual_seed(0)
        drawn = spec.draw(f, cell.targets, DRAWS).flatten(1) / (cell.point.norm * DRAWS) ** 0.5
        jacobian = cell.dense.jacobian  # of log-probabilities only a part can be seen
        return equal(columns @ jacobian, drawn @ jacobian)
    if not spec.known:
        return None
    for n in range(N):
        own = cell.dense.owner == n
        matrix = cell.point.ggn[own][:, own]
        rank = torch.linalg.matrix_rank(matrix, hermitian=True)
        inverse = torch.linalg.pinv(matrix, hermitian=True)
        for s in columns[:, own]:
            assert float(s @ inverse @ s) * DRAWS == pytest.approx(float(rank), rel=1e-6)
    return None


class Signs(e.HutchinsonDiagonal):
    """The random signs themselves: those times ones, with whatever else is drawn on the way."""

    def _product(self, at: Pass, model: Linearised) -> Product:
        product = super()._product(at, model)
        return lambda vectors: tuple(torch.ones_like(p) for p in product(vectors))


def named(quantity: Quantity, field: str) -> Quantity:
    quantity.savefield = field
    return quantity


def second_order(cell: Cell) -> None:
    cell.run(e.DiagHessian(), e.BatchDiagHessian(), e.HMP())
    for field in ("diag_h", "diag_h_batch"):
        equal_tensors(cell, field, TENSORS[field](cell.point))
    equal_products(cell, "hmp", dict(cell.point.blocks(cell.point.hessian_shares.sum(0))))
    randomised(cell, "hessian", cell.point.hessian_shares.sum(0))
    if cell.spec.known:
        return randomised(cell, "ggn", cell.point.ggn_shares.sum(0))
    made = [e.HutchinsonDiagonal(1, "ggn"), e.HutchinsonTrace(1, "ggn")]
    return refuse(cell, made, UnsupportedLossError)


def randomised(cell: Cell, kind: str, matrix: Tensor) -> None:
    """Both estimates with the signs that are drawn in the same order from the same seed."""
    cell.run(e.HutchinsonDiagonal(1, kind), e.HutchinsonTrace(1, kind))
    cell.run(named(Signs(1, kind), "first"), named(Signs(1, kind), "second"))
    scale = float(cell.point.hessian_shares.abs().max())
    for signs, field in (("first", "hutchinson_diagonal"), ("second", "hutchinson_trace")):
        v = torch.cat([v.flatten() for v in cell.found(signs).values()])
        assert bool((v.abs() == 1).all())
        expected = v * (matrix @ v)
        for name, found in cell.found(field).items():
            own = expected[cell.dense.places[name]]
            own = own.view_as(found) if found.dim() else own.sum()
            equal(found, own, scale * len(v) ** 2)


ROOT = ("ggn", "exact", "sqrt", "E[J^T E(H) J]")


def kronecker_factors(cell: Cell) -> None:
    drawn = [e.KFAC(DRAWS), e.EKFAC(DRAWS), e.HBP("ggn", "sampling", *ROOT[2:])]
    known = [e.KFLR(), e.HBP(*ROOT, savefield="kflr_too")]
    if cell.kind in WITHOUT_FACTORS:
        kinds = UncoveredParameterError if cell.spec.known else REFUSALS
        return refuse(cell, drawn, UncoveredParameterError) or refuse(cell, known, kinds)
    cell.run(*drawn)
    if cell.kind in CELLS:
        return None
    cell.run(root("first"), root("second"), root("third", 1))
    first, second, third = cell.columns("first", "second", "third")
    equal_factors(cell, "kfac", kronecker(cell.point.sampled(first)))
    equal_factors(cell, "hbp", kronecker(cell.point.sampled(third)))
    check_eigenbasis(cell, cell.point.sampled(second))
    if not cell.spec.known:
        return refuse(cell, known, UnsupportedLossError)
    cell.run(*known)
    for field in ("kflr", "kflr_too"):
        equal_factors(cell, field, kronecker(cell.point))
    return None


def check_eigenbasis(cell: Cell, point: Point) -> None:
    """Orthogonal, it makes the factors diagonal, and it has the diagonal of the block."""
    factors, blocks = kronecker(point), matrix_blocks(point)
    for name, found in cell.found("ekfac").items():
        *bases, moments = found
        for basis, factor in zip(bases, factors[name], strict=True):
            equal(basis.T @ basis, torch.eye(len(basis)).double())
            rotated = basis.T @ factor @ basis
            equal(rotated, rotated.diagonal().diag())
        basis = bases[0] if len(bases) == 1 else torch.kron(*bases)
        diagonal = (basis.T @ blocks[name] @ basis).diagonal()
        equal(moments.flatten(), diagonal, float(blocks[name].abs().max()))


AVERAGED = ("ggn", "hessian", "pch-clip", "pch-abs")


def chains(cell: Cell) -> None:
    own = {kind: e.HBP(kind, "sum", "average", ROOT[3], savefield=kind) for kind in AVERAGED}
    plain = [e.KFRA(), own.pop("ggn")]
    second = list(own.values())
    products = [e.PCHMP(), e.PCHMP("absolute", "abs")]
    curved = cell.kind in CURVED or cell.loss == "negative log-likelihood"
    if cell.kind not in CHAINS:
        return refuse(cell, [*plain, *second, *products], NotAChainError)
    if not cell.spec.known:
        return refuse(cell, [*plain, *second, *products], UnsupportedLossError)
    if cell.kind in WITHOUT_FACTORS | WITH_OTHER_VECTORS:
        refuse(cell, plain, UncoveredParameterError)
        refuse(cell, second, REFUSALS if curved else UncoveredParameterError)
    else:
        cell.run(*plain)
        for field in ("kfra", "ggn"):
            equal_factors(cell, field, averaged(cell.point, "ggn"))
        if curved:
            refuse(cell, second, NotAChainError)
        else:
            cell.run(*second)
            for field in own:
                equal_factors(cell, field, averaged(cell.point, field))
    if curved:
        return refuse(cell, products, NotAChainError)
    cell.run(*products)
    equal_products(cell, "pchmp", positive_curvature(cell.point, "pch-clip"))
    equal_products(cell, "absolute", positive_curvature(cell.point, "pch-abs"))
    return None


REFUSALS = (NotAChainError, UncoveredParameterError, UnsupportedLossError)


def refuse(cell: Cell, made: list[Quantity], error: Any) -> None:
    """Each alone, beside two that would be fine, raises by name and leaves nothing stored."""
    for quantity in made:
        beside = [e.BatchGrad(), e.DiagGGNMC()]
        for p in cell.model.parameters():
            p.__dict__.clear()
        with pytest.raises(error) as caught:
            cell.run(*beside, quantity)
        if isinstance(caught.value, UncoveredParameterError):
            named = {n.split(".")[-1] for n, _ in cell.model.named_parameters()}
            assert any(f"{name}'" in str(caught.value) for name in named)
            assert any(type(m).__name__ in str(caught.value) for m in cell.model.modules())
        assert all(not p.__dict__ for p in cell.model.parameters())


FAMILIES: dict[str, Callable[[Cell], None]] = {
    f.__name__: f for f in (first_order, exact, sampled, second_order, kronecker_factors, chains)
}


# What is dear comes round once where the rest does twice.
ROTATION = [*list(FAMILIES)[:3], *FAMILIES]
REFUSED = {
    "chains": set(KINDS) - CHAINS | WITHOUT_FACTORS | WITH_OTHER_VECTORS,
    "kronecker_factors": WITHOUT_FACTORS | CELLS,
}


def cells() -> list[tuple[str, str, str, str]]:
    """One family in each: with one more layer or loss the next one.

    And for every family each loss at least once with a kind of layer that it is not refused for.
    """
    made = []
    for i, kind in enumerate(KINDS):
        for j, loss in list(enumerate(LOSSES))[i % 2 :: 2]:
            turn, family = divmod(i + j // 2, len(ROTATION))
            made.append((kind, loss, ROTATION[family], ("mean", "sum")[turn % 2]))
    for family, refused in REFUSED.items():
        kinds = cycle(kind for kind in KINDS if kind not in refused)
        met = {loss for kind, loss, f, _ in made if f == family and kind not in refused}
        made += [(next(kinds), loss, family, "mean") for loss in LOSSES if loss not in met]
    return made


def test_the_sample_covers_every_pair() -> None:
    sample = cells()
    assert {(k, f) for k, _, f, _ in sample} == {(k, f) for k in KINDS for f in FAMILIES}
    for family in FAMILIES:
        refused = REFUSED.get(family, set())
        assert {j for k, j, f, _ in sample if f == family and k not in refused} == set(LOSSES)


@pytest.mark.parametrize(("kind", "loss", "family", "reduction"), cells())
def test_a_covering_sample(kind: str, loss: str, family: str, reduction: str) -> None:
    FAMILIES[family](Cell(kind, loss, reduction))


@pytest.mark.campaign
@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("kind", KINDS)
def test_the_whole_product(kind: str, loss: str, reduction: str) -> None:
    cell = Cell(kind, loss, reduction)
    for family in FAMILIES.values():
        family(cell)


def test_the_registries_list_what_is_tested() -> None:
    assert set(RULES) <= {type(LOSSES[loss].make("mean")) for loss in LOSSES}
    assert set(LAYERS) <= set(KINDS)
    cell = Cell("linear extra axes", "squared error", "mean")
    for family in FAMILIES.values():
        family(cell)
    assert cell.computed == {*EXTENSIONS, Signs}
