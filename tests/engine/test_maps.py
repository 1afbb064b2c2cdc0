"""Linear maps that no layer of their own makes: attention's projections, ``F.linear``, tables."""

import logging
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from curvserve.engine import backpack, evaluate, extend
from curvserve.engine.errors import UncoveredParameterError
from curvserve.engine.extensions import (
    KFAC,
    BatchGrad,
    BatchL2Grad,
    DiagGGNExact,
    DiagHessian,
    SumGradSquared,
)  # fmt: skip
from tests.engine import reference
from tests.engine.test_quantities import collected, largest_error, run
from tests.engine.zoo import Case, Wrapped, classes

N, T, D = 3, 4, 4
ERROR = 1e-11


def ways(case: Case) -> str:
    """By what the parameters are accounted for."""
    lines: list[str] = []
    handler, logger = logging.Handler(), logging.getLogger("curvserve.engine")
    handler.emit = lambda record: lines.append(record.getMessage())  # type: ignore[method-assign]  # handlers are made to be replaced
    level = logger.level
    logger.setLevel(logging.INFO)
    logger.addHandler(handler)
    model, loss = extend(case.model), extend(case.loss)
    with backpack(BatchGrad(), debug=True):
        loss(model(case.inputs), case.targets).backward()
    logger.removeHandler(handler)
    logger.setLevel(level)
    return "\n".join(lines)


def check(case: Case) -> None:
    run(case, BatchGrad(), BatchL2Grad(), SumGradSquared(), DiagGGNExact())
    arguments = case.model, case.loss, case.inputs, case.targets
    rows = reference.batch_grad(*arguments)
    assert largest_error(collected(case, "grad_batch"), rows) < ERROR
    squares = {name: r.square() for name, r in rows.items()}
    norms = {name: s.flatten(1).sum(1) for name, s in squares.items()}
    assert largest_error(collected(case, "batch_l2"), norms) < ERROR
    sums = {name: s.sum(0) for name, s in squares.items()}
    assert largest_error(collected(case, "sum_grad_squared"), sums) < ERROR
    diagonal = reference.diag_ggn(*arguments)
    assert largest_error(collected(case, "diag_ggn_exact"), diagonal) < ERROR


def made(forward: Callable[[Any, Tensor], Tensor], **parts: Any) -> Case:
    """A net that begins and ends with a layer, so that something lies before and behind."""
    model = Wrapped(
        lambda m, x: m.head(forward(m, m.before(x)).tanh().flatten(1)),
        before=nn.Linear(D, D), head=nn.LazyLinear(4), **parts,
    ).double()  # fmt: skip
    x = torch.randn(N, T, D).double()
    model(x)
    return Case(model, x, classes(N), nn.CrossEntropyLoss())


def matrix(*shape: int) -> nn.Parameter:
    return nn.Parameter(torch.randn(shape))


def masks(draw: Any) -> dict[str, Any]:
    blocked = torch.ones(T, T, dtype=torch.bool).triu(1)
    found: dict[str, Any] = draw(
        st.sampled_from(
            [
                {},
                {"attn_mask": blocked},
                {"attn_mask": blocked, "is_causal": True},
                {"attn_mask": torch.randn(T, T).double()},
                {"attn_mask": torch.randn(N * 2, T, T).double()},
            ]
        )
    ).copy()
    if draw(st.booleans()):
        padding = torch.zeros(N, T, dtype=torch.bool)
        padding[1, -1] = True
        floating = found and found["attn_mask"].is_floating_point()
        found["key_padding_mask"] = padding.double() * -9 if floating else padding
    return found


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.data())
def test_attention_with_any_options(data: st.DataObject) -> None:
    draw = data.draw
    torch.manual_seed(draw(st.integers(0, 2**32)))
    source = draw(st.sampled_from(["self", "memory", "apart"]))
    sizes = draw(st.sampled_from([{}, {"kdim": 5, "vdim": 3}])) if source == "apart" else {}
    first = draw(st.booleans())
    attend = nn.MultiheadAttention(
        D, 2, draw(st.sampled_from([0.0, 0.5])), draw(st.booleans()), draw(st.booleans()),
        draw(st.booleans()), batch_first=first, **sizes,
    )  # fmt: skip
    for p in attend.parameters():
        p.requires_grad_(draw(st.integers(0, 4)) > 0)
    options = masks(draw) | {
        "need_weights": draw(st.booleans()), "average_attn_weights": draw(st.booleans())
    }  # fmt: skip

    def forward(m: Any, x: Tensor) -> Tensor:
        x = x if first else x.transpose(0, 1)
        k = x if source == "self" else m.k(x)
        torch.manual_seed(7)  # the same dropout in each run
        y, weights = m.attend(x, k, m.v(x) if source == "apart" else k, **options)
        y = (y if first else y.transpose(0, 1)).flatten(1)
        return y if weights is None else torch.cat([y, weights.flatten(1)], 1)

    layers = {"k": nn.Linear(D, sizes.get("kdim", D)), "v": nn.Linear(D, sizes.get("vdim", D))}
    used = {"self": "", "memory": "k", "apart": "kv"}[source]
    case = made(forward, attend=attend, **{name: layers[name] for name in used})
    assert "Replay" not in ways(case)
    check(case)


MAPS: dict[str, tuple[Callable[[Any, Tensor], Tensor], Callable[[], dict[str, Any]]]] = {
    "linear": (lambda m, x: F.linear(x, m.w, m.b), lambda: {"w": matrix(3, D), "b": matrix(3)}),
    "two axes": (
        lambda m, x: F.linear(x.flatten(0, 1), m.w, m.b).view(N, -1),
        lambda: {"w": matrix(3, D), "b": matrix(3)},
    ),
    "time first": (
        lambda m, x: F.linear(x.transpose(0, 1), m.w, m.b).transpose(0, 1),
        lambda: {"w": matrix(3, D), "b": matrix(3)},
    ),
    "twice": (lambda m, x: F.linear(F.linear(x, m.w).tanh(), m.w), lambda: {"w": matrix(D, D)}),
    "one transpose for two": (
        lambda m, x: (lambda w: (x @ w).tanh() @ w)(m.w.t()),
        lambda: {"w": matrix(D, D)},
    ),
    "lines": (
        lambda m, x: F.linear(x, m.w.split([1, 4])[1], m.b.chunk(2)[0]),
        lambda: {"w": matrix(5, D), "b": matrix(8)},
    ),
    "lines that meet": (
        lambda m, x: sum(F.linear(x, w) for w in (*m.w.chunk(2), m.w.split(2)[0])),
        lambda: {"w": matrix(4, D)},
    ),
    "shift only": (lambda m, x: x + m.b, lambda: {"b": matrix(D)}),
    "table of positions": (lambda m, x: x + m.b, lambda: {"b": matrix(T, D)}),
    "table with a batch axis": (lambda m, x: m.b + x, lambda: {"b": matrix(1, T, D)}),
    "table, time first": (
        lambda m, x: (x.transpose(0, 1) + m.b).transpose(0, 1),
        lambda: {"b": matrix(T, 1, D)},
    ),
    "column": (lambda m, x: x + m.b, lambda: {"b": matrix(T, 1)}),
    "half of a table": (lambda m, x: x + m.b.split(T)[1], lambda: {"b": matrix(2 * T, D)}),
    "class token": (
        lambda m, x: torch.cat([m.b.expand(N, -1, -1), x], 1),
        lambda: {"b": matrix(1, 1, D)},
    ),
    "class token, repeated": (
        lambda m, x: torch.cat([m.b.repeat(N, 1, 1), x], 1),
        lambda: {"b": matrix(1, 1, D)},
    ),
}
OTHERS: dict[str, tuple[Callable[[Any, Tensor], Tensor], Callable[[], dict[str, Any]]]] = {
    "not turned": (lambda m, x: x @ m.w, lambda: {"w": matrix(D, 3)}),
    "from the left": (lambda m, x: (m.w @ x[:, 0].T).T, lambda: {"w": matrix(3, D)}),
    "a multiple": (lambda m, x: torch.add(x, m.b, alpha=2), lambda: {"b": matrix(D)}),
    "a multiple of a product": (
        lambda m, x: torch.addmm(m.b, x[:, 0], m.w.t(), beta=2, alpha=3),
        lambda: {"w": matrix(3, D), "b": matrix(3)},
    ),
    "scaled": (lambda m, x: x * m.b, lambda: {"b": matrix(D)}),
    "columns": (
        lambda m, x: F.linear(x, m.w.split([1, 3], 1)[1].repeat(1, 2)[:, :D]),
        lambda: {"w": matrix(3, D)},
    ),
    "a line of a bias of one": (
        lambda m, x: torch.addmm(m.b, x[:, 0], m.w.t()),
        lambda: {"w": matrix(3, D), "b": matrix(1)},
    ),
    "used for a norm too": (
        lambda m, x: (lambda w: x @ w / w.norm())(m.w.t()), lambda: {"w": matrix(3, D)}
    ),
    "of no sample": (lambda m, x: x @ F.linear(m.a, m.w), lambda: {
        "a": matrix(D, D), "w": matrix(3, D)
    }),
    "repeated along another axis": (
        lambda m, x: torch.cat([m.b.repeat(len(x), 2, 1), x], 1), lambda: {"b": matrix(1, 2, D)}
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", [*MAPS, *OTHERS])
def test_maps_against_brute_force(name: str) -> None:
    torch.manual_seed(0)
    forward, parts = (MAPS | OTHERS)[name]
    case = made(forward, **parts())
    assert ("Replay" in ways(case)) == (name in OTHERS)
    check(case)


@pytest.mark.parametrize("name", MAPS)
def test_curvature_of_the_maps(name: str) -> None:
    """The residual of the Hessian goes through what they give, the same in ``evaluate``."""
    torch.manual_seed(0)
    forward, parts = MAPS[name]
    case = made(forward, **parts())
    arguments = case.model, case.loss, case.inputs, case.targets
    blocks = reference.hessian_blocks(*arguments)
    trained = reference.trained(case.model)
    wanted = {name: blocks[name].diagonal().view_as(p) for name, p in trained.items()}
    run(case, DiagHessian())
    assert largest_error(collected(case, "diag_h"), wanted) < ERROR
    found = evaluate(*arguments, [DiagHessian(), BatchGrad()]).quantities
    assert largest_error(found["diag_h"], wanted) < ERROR
    assert largest_error(found["grad_batch"], reference.batch_grad(*arguments)) < ERROR


def test_a_parameter_added_to_itself_by_a_single_sample() -> None:
    """Both terms are the same parameter: that is no map, although no axis tells."""
    torch.manual_seed(0)
    case = made(lambda m, x: x + m.b, b=matrix(T, D))
    case = Case(case.model, case.inputs[:1], case.targets[:1], case.loss)
    case.model._function = lambda m, x: m.head((m.before(x) + (m.b + m.b)).tanh().flatten(1))
    check(case)


def test_factors_of_cells_are_those_of_their_gates() -> None:
    torch.manual_seed(0)
    cell, head = nn.GRUCell(D, 3), nn.Linear(3, 4)
    into, onto = nn.Linear(D, 9), nn.Linear(3, 9)
    for layer, name in ((into, "ih"), (onto, "hh")):
        layer.weight = getattr(cell, f"weight_{name}")
        layer.bias = getattr(cell, f"bias_{name}")

    def called(m: Any, x: Tensor) -> Tensor:
        h = x.new_zeros(N, 3)
        for step in x.unbind(1):
            h = m.cell(step, h)
        return m.head(h)

    def written_out(m: Any, x: Tensor) -> Tensor:
        h = x.new_zeros(N, 3)
        for step in x.unbind(1):
            (ir, iz, new), (hr, hz, old) = m.into(step).chunk(3, 1), m.onto(h).chunk(3, 1)
            update = (iz + hz).sigmoid()
            h = (1 - update) * (new + (ir + hr).sigmoid() * old).tanh() + update * h
        return m.head(h)

    models = Wrapped(called, cell=cell, head=head), Wrapped(written_out, into=into, onto=onto,
                                                            head=head)  # fmt: skip
    x, y = torch.randn(N, T, D).double(), classes(N)
    factors = []
    for model in models:
        torch.manual_seed(0)
        run(Case(model.double(), x, y, nn.CrossEntropyLoss()), KFAC())
        factors.append([f.clone() for p in cell.parameters() for f in p.kfac])
    for own, wanted in zip(*factors, strict=True):
        torch.testing.assert_close(own, wanted, rtol=1e-11, atol=1e-13)


def test_what_a_checkpoint_does_not_keep_is_replayed() -> None:
    torch.manual_seed(0)
    case = made(
        lambda m, x: checkpoint(lambda x: m.attend(x, x, x)[0], x, use_reentrant=False),
        attend=nn.MultiheadAttention(D, 2, batch_first=True),
    )
    assert "Replay" in ways(case)
    check(case)


@pytest.mark.parametrize(
    ("forward", "parameter"),
    [
        (lambda m, x: checkpoint(lambda x: F.linear(x, m.w), x, use_reentrant=False), (3, D)),
        (lambda m, x: x[:, 0] + m.w, (N, D)),  # a line for each sample
    ],
)
def test_neither_map_nor_replay(
    forward: Callable[[Any, Tensor], Tensor], parameter: tuple[int, ...]
) -> None:
    case = made(forward, w=matrix(*parameter))
    with pytest.raises(UncoveredParameterError, match="parameter 'w'"):
        run(case, BatchGrad())


def test_an_input_that_was_modified_since() -> None:
    """As autograd itself, where the weight's gradient is wanted."""
    torch.manual_seed(0)

    def forward(m: Any, x: Tensor) -> Tensor:
        y = F.linear(x, m.w)
        x.mul_(2)
        return y

    model, loss = Wrapped(lambda m, x: forward(m, x.clone()), w=matrix(4, D)), nn.CrossEntropyLoss()
    with pytest.raises(RuntimeError, match="inplace"), backpack(BatchGrad()):
        extend(loss)(extend(model)(torch.randn(N, D)), classes(N)).backward()


def test_in_mixed_precision() -> None:
    torch.manual_seed(0)
    case = made(
        lambda m, x: m.attend(x, x, x)[0] + m.b,
        attend=nn.MultiheadAttention(D, 2, batch_first=True), b=matrix(T, D),
    )  # fmt: skip
    model, loss, x = extend(case.model.float()), extend(case.loss), case.inputs.float()
    with backpack(BatchGrad()):
        with torch.autocast("cpu", torch.bfloat16):
            value = loss(model(x), case.targets)
        value.backward()
    for p in model.parameters():
        assert p.grad_batch.dtype == torch.float32
        torch.testing.assert_close(p.grad_batch.sum(0), p.grad, rtol=0.05, atol=0.02)
