"""Each trap on the way to right numbers, by its name.

Most are structures of the zoo, on which every quantity is held against brute force; here each is
held once more against a model that is the same function written without the trap.
"""

import copy
import threading
import weakref

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations
from torch.utils.checkpoint import checkpoint

from curvserve.engine import backpack, evaluate, extend
from curvserve.engine.errors import (
    EngineError,
    MixedSamplesError,
    NonFiniteError,
    SecondDerivativeError,
)
from curvserve.engine.extensions import (
    EKFAC,
    HMP,
    KFAC,
    KFLR,
    PCHMP,
    BatchDiagGGNExact,
    BatchDiagHessian,
    BatchGrad,
    BatchL2Grad,
    DiagGGNExact,
    DiagGGNMC,
    DiagHessian,
    HutchinsonDiagonal,
    SqrtGGNExact,
    SumGradSquared,
    Variance,
)
from curvserve.engine.losses import Convex
from tests.engine import reference
from tests.engine.test_quantities import collected, largest_error, run
from tests.engine.zoo import Case, Wrapped, classes, make

FIELDS = ("grad_batch", "diag_ggn_exact", "diag_h")


def quantities(model: nn.Module, x: Tensor, y: Tensor) -> dict[str, dict[str, Tensor]]:
    return evaluate(model, nn.CrossEntropyLoss(), x, y, FIELDS).quantities


def assert_same(trapped: nn.Module, plain: nn.Module, x: Tensor, y: Tensor) -> None:
    found, expected = quantities(trapped, x, y), quantities(plain, x, y)
    for field in FIELDS:
        first, second = list(found[field].values()), list(expected[field].values())
        numbered = ({str(i): v for i, v in enumerate(values)} for values in (first, second))
        assert largest_error(*numbered) < 1e-11


def linear(inputs: int = 6, outputs: int = 6) -> nn.Linear:
    return nn.Linear(inputs, outputs).double()


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


@pytest.fixture
def x() -> Tensor:
    return torch.randn(5, 6).double()


@pytest.fixture
def y() -> Tensor:
    return classes(5)


def test_an_in_place_operation_after_a_layer(x: Tensor, y: Tensor) -> None:
    first, last = linear(), linear(6, 4)
    trapped = nn.Sequential(first, nn.SiLU(inplace=True), last)
    plain = nn.Sequential(first, nn.SiLU(), last)
    assert_same(trapped, plain, x, y)


def test_a_functional_activation_in_forward(x: Tensor, y: Tensor) -> None:
    first, last = linear(), linear(6, 4)
    trapped = Wrapped(lambda m, x: m.last(F.gelu(m.first(x))), first=first, last=last)
    assert_same(trapped, nn.Sequential(first, nn.GELU(), last), x, y)


def test_activation_checkpointing(x: Tensor, y: Tensor) -> None:
    first, last = nn.Sequential(linear(), nn.Tanh()), linear(6, 4)
    trapped = Wrapped(
        lambda m, x: m.last(checkpoint(m.first, x, use_reentrant=False)), first=first, last=last
    )
    assert_same(trapped, nn.Sequential(first, last), x, y)


def test_activation_checkpointing_that_hides_its_parameters(x: Tensor, y: Tensor) -> None:
    model = extend(
        Wrapped(
            lambda m, x: m.last(checkpoint(m.first, x, use_reentrant=True)),
            first=nn.Sequential(linear(), nn.Tanh()), last=linear(6, 4),
        )
    )  # fmt: skip
    loss = extend(nn.CrossEntropyLoss())
    for extension in (BatchGrad(), DiagGGNExact()):
        with pytest.raises(EngineError, match="use_reentrant=False"), backpack(extension):
            loss(model(x.requires_grad_()), y).backward()
        assert all(not hasattr(p, extension.savefield) for p in model.parameters())


@pytest.mark.filterwarnings("ignore")  # the compiler's own
@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_compiled_models(backend: str, x: Tensor, y: Tensor) -> None:
    plain = nn.Sequential(linear(), nn.Tanh(), linear(6, 4))
    inner = copy.deepcopy(plain)
    compiled, loss = extend(torch.compile(inner, backend=backend)), extend(nn.CrossEntropyLoss())
    with backpack(BatchGrad(), DiagGGNExact()):
        loss(compiled(x), y).backward()
    expected = evaluate(plain, loss, x, y, ["grad_batch", "diag_ggn_exact"]).quantities
    for field, values in expected.items():
        found = {n: getattr(p, field) for n, p in inner.named_parameters()}
        assert largest_error(found, values) < 1e-12
    late = torch.compile(extend(copy.deepcopy(plain)), backend=backend)
    with pytest.raises(EngineError, match="what torch.compile returns"), backpack(BatchGrad()):
        loss(late(x), y).backward()
    assert all(not hasattr(p, "grad_batch") for p in late.parameters())


def test_samples_on_the_second_axis(y: Tensor) -> None:
    x = torch.randn(5, 5, 6).double()  # as many steps as samples
    body, head = linear(), linear(6, 4)
    trapped = Wrapped(
        lambda m, x: m.head(m.body(x.transpose(0, 1).contiguous()).tanh().sum(0)),
        body=body, head=head,
    )  # fmt: skip
    plain = Wrapped(lambda m, x: m.head(m.body(x).tanh().sum(1)), body=body, head=head)
    assert_same(trapped, plain, x, y)


def test_tokens_folded_into_the_batch(y: Tensor) -> None:
    x = torch.randn(5, 3, 6).double()
    body, head = linear(), linear(6, 4)
    trapped = Wrapped(
        lambda m, x: m.head(m.body(x.flatten(0, 1)).tanh().unflatten(0, (5, 3)).sum(1)),
        body=body, head=head,
    )  # fmt: skip
    plain = Wrapped(lambda m, x: m.head(m.body(x).tanh().sum(1)), body=body, head=head)
    assert_same(trapped, plain, x, y)


def test_a_parameter_used_by_a_function(x: Tensor, y: Tensor) -> None:
    body, head = linear(), linear(6, 4)
    trapped = Wrapped(
        lambda m, x: m.head(F.linear(x, m.body.weight, m.body.bias).tanh()), body=body, head=head
    )
    assert_same(trapped, nn.Sequential(body, nn.Tanh(), head), x, y)


def test_a_bare_parameter_on_a_container(x: Tensor, y: Tensor) -> None:
    class Own(nn.Module):
        def __init__(self, like: nn.Linear) -> None:
            super().__init__()
            self.weight, self.bias = like.weight, like.bias

        def forward(self, x: Tensor) -> Tensor:
            return (x @ self.weight.T + self.bias).tanh()

    body, head = linear(), linear(6, 4)
    assert_same(nn.Sequential(Own(body), head), nn.Sequential(body, nn.Tanh(), head), x, y)


def test_a_module_called_twice_and_tied_weights(x: Tensor, y: Tensor) -> None:
    shared, twin, head = linear(), linear(), linear(6, 4)
    twin.weight, twin.bias = shared.weight, shared.bias
    trapped = nn.Sequential(shared, nn.Tanh(), shared, head)
    tied = nn.Sequential(shared, nn.Tanh(), twin, head)
    functional = Wrapped(
        lambda m, x: m.head(F.linear(m.body(x).tanh(), m.body.weight, m.body.bias)),
        body=shared, head=head,
    )  # fmt: skip
    assert_same(trapped, functional, x, y)
    assert_same(tied, functional, x, y)


def test_parametrizations(x: Tensor, y: Tensor) -> None:
    normed = parametrizations.weight_norm(linear())
    normed.parametrizations.weight.original0.data *= 1.5
    norm, direction = (p.detach().clone() for p in normed.parametrizations.weight.parameters())

    class Explicit(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.bias = nn.Parameter(normed.bias.detach().clone())
            self.norm, self.direction = nn.Parameter(norm), nn.Parameter(direction)

        def forward(self, x: Tensor) -> Tensor:
            weight = self.norm * self.direction / self.direction.norm(dim=1, keepdim=True)
            return x @ weight.T + self.bias

    head = linear(6, 4)
    assert_same(
        nn.Sequential(normed, nn.Tanh(), head), nn.Sequential(Explicit(), nn.Tanh(), head), x, y
    )


def test_two_forward_passes_before_one_backward(x: Tensor, y: Tensor) -> None:
    model, loss = extend(nn.Sequential(linear(), nn.Tanh(), linear(6, 4))), nn.CrossEntropyLoss()
    extend(loss)
    first, second = loss(model(x), y), loss(model(2 * x), y)
    found = []
    for value in (first, second):
        with backpack(DiagHessian()):
            value.backward()
        found.append({n: p.diag_h for n, p in model.named_parameters()})
    for inputs, diagonal in zip((x, 2 * x), found, strict=True):
        assert largest_error(diagonal, quantities(model, inputs, y)["diag_h"]) < 1e-12


def test_autocast(x: Tensor, y: Tensor) -> None:
    model = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 4))
    extensions = [BatchGrad(), BatchL2Grad(), SumGradSquared(), DiagGGNExact(), SqrtGGNExact()]
    half, full = (Case(copy.deepcopy(model), x.float(), y, nn.CrossEntropyLoss()) for _ in range(2))
    run(full, *extensions)
    extend(half.model), extend(half.loss)
    with backpack(*extensions):
        with torch.autocast("cpu", torch.bfloat16):
            value = half.loss(half.model(half.inputs), half.targets)
        value.backward()
    for extension in extensions:
        field = extension.savefield
        found, expected = collected(half, field), collected(full, field)
        # Squares are summed in the parameters' type, not in that of the cotangents.
        assert {v.dtype for v in found.values()} == {torch.float32}
        assert largest_error(found, expected) < 0.1  # bfloat16 has eight bits


def test_autocast_and_the_eigenvectors_of_factors(x: Tensor, y: Tensor) -> None:
    model = extend(nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 4)))
    loss = extend(nn.CrossEntropyLoss())
    with backpack(KFAC(), EKFAC()):
        with torch.autocast("cpu", torch.bfloat16):
            value = loss(model(x.float()), y)
        value.backward()
    for p in model.parameters():
        assert {t.dtype for t in (*p.kfac, *p.ekfac)} == {torch.float32}


def test_hooks_fire_inside_the_inner_passes_and_in_replays(x: Tensor, y: Tensor) -> None:
    """Neither the loss nor the model is reached once more by what is sent back for the first."""
    attend = nn.MultiheadAttention(6, 2, batch_first=True).double()
    model = extend(
        Wrapped(lambda m, x: m.last(m.attend(x, x, x)[0].mean(1)), attend=attend, last=linear(6, 4))
    )
    loss, calls = extend(nn.CrossEntropyLoss()), []
    x = x.unsqueeze(1).expand(-1, 3, -1)
    with backpack(BatchGrad(), DiagGGNExact(), DiagHessian(), extension_hook=calls.append):
        loss(model(x), y).backward()
    assert len(calls) == len(set(calls)) == 4  # loss, last, attention and its projection
    expected = evaluate(model, loss, x, y, FIELDS).quantities
    for field in FIELDS:
        found = {n: getattr(p, field) for n, p in model.named_parameters()}
        assert largest_error(found, expected[field]) < 1e-12


def test_one_level_of_vmap_is_enough(y: Tensor) -> None:
    """A second one, over the columns, breaks PReLU and every recurrent net."""
    x = torch.randn(5, 3, 6).double()
    body, slope, head = nn.GRU(6, 6, batch_first=True).double(), nn.PReLU(6).double(), linear(6, 4)
    trapped = Wrapped(
        lambda m, x: m.head(m.slope(m.body(x)[0][:, -1])), body=body, slope=slope, head=head
    )
    expected_rows = reference.batch_grad(trapped, nn.CrossEntropyLoss(), x, y)
    expected_ggn = reference.diag_ggn(trapped, nn.CrossEntropyLoss(), x, y)
    found = quantities(trapped, x, y)
    assert largest_error(found["grad_batch"], expected_rows) < 1e-12
    assert largest_error(found["diag_ggn_exact"], expected_ggn) < 1e-12


def test_dropout_that_a_replay_would_draw_anew(y: Tensor) -> None:
    x = torch.randn(5, 3, 6)
    body = nn.LSTM(6, 6, 2, dropout=0.5, batch_first=True)
    model = extend(
        Wrapped(lambda m, x: m.last(m.body(x)[0].mean(1)), body=body, last=nn.Linear(6, 4))
    )
    loss = extend(nn.CrossEntropyLoss())
    with pytest.raises(EngineError, match="dropout in training mode"), backpack(BatchGrad()):
        loss(model(x), y).backward()
    assert all(not hasattr(p, "grad_batch") for p in model.parameters())
    with backpack(BatchGrad()):
        loss(model.eval()(x), y).backward()
    assert all(len(p.grad_batch) == 5 for p in model.parameters())


def test_dropout_in_attention_is_that_of_the_forward_pass(y: Tensor) -> None:
    x, body = torch.randn(5, 3, 6), nn.MultiheadAttention(6, 2, dropout=0.5, batch_first=True)
    model = extend(
        Wrapped(lambda m, x: m.last(m.body(x, x, x)[0].mean(1)), body=body, last=linear(6, 4))
    ).double()
    loss = extend(nn.CrossEntropyLoss())
    with backpack(BatchGrad()):
        loss(model(x.double()), y).backward()
    for p in model.parameters():
        torch.testing.assert_close(p.grad_batch.sum(0), p.grad, rtol=1e-12, atol=1e-14)


def test_fused_attention_has_no_second_derivative(y: Tensor) -> None:
    x = torch.randn(5, 3, 6).double()
    into, head = linear(6, 18), linear(6, 4)

    def fused(m: nn.Module, x: Tensor) -> Tensor:
        q, k, v = m.into(x).unsqueeze(1).chunk(3, -1)
        return m.head(F.scaled_dot_product_attention(q, k, v).squeeze(1).mean(1))

    def plain(m: nn.Module, x: Tensor) -> Tensor:
        q, k, v = m.into(x).chunk(3, -1)
        return m.head(((q @ k.mT / 6**0.5).softmax(-1) @ v).mean(1))

    assert_same(Wrapped(fused, into=into, head=head), Wrapped(plain, into=into, head=head), x, y)


def test_fused_recurrent_nets_have_no_second_derivative(y: Tensor) -> None:
    x = torch.randn(5, 3, 6).double()
    body, head = nn.LSTM(6, 3, batch_first=True).double(), linear(3, 4)

    def written_out(m: nn.Module, x: Tensor) -> Tensor:
        b, h, c = m.body, x.new_zeros(len(x), 3), x.new_zeros(len(x), 3)
        for step in x.unbind(1):
            gates = F.linear(step, b.weight_ih_l0, b.bias_ih_l0)
            i, f, g, o = (gates + F.linear(h, b.weight_hh_l0, b.bias_hh_l0)).chunk(4, 1)
            c = f.sigmoid() * c + i.sigmoid() * g.tanh()
            h = o.sigmoid() * c.tanh()
        return m.head(h)

    fused = Wrapped(lambda m, x: m.head(m.body(x)[0][:, -1]), body=body, head=head)
    assert_same(fused, Wrapped(written_out, body=body, head=head), x, y)


def test_samples_mixed_by_a_norm_in_training_mode(x: Tensor, y: Tensor) -> None:
    model = extend(nn.Sequential(linear(), nn.BatchNorm1d(6).double(), linear(6, 4)))
    loss = extend(nn.CrossEntropyLoss())
    for extension in (BatchL2Grad(), Variance(), KFLR(), DiagHessian(), SqrtGGNExact()):
        with pytest.raises(MixedSamplesError, match="training mode"), backpack(extension):
            loss(model(x), y).backward()
        assert all(not hasattr(p, extension.savefield) for p in model.parameters())


def test_a_replay_that_runs_out_of_memory(x: Tensor, y: Tensor) -> None:
    """It says nothing of how samples lie, so no other module is tried and nothing is refused."""

    class Greedy(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight, self.calls = nn.Parameter(torch.randn(6, 6).double()), 0

        def forward(self, x: Tensor) -> Tensor:
            self.calls += 1
            if self.calls > 1:
                raise torch.OutOfMemoryError
            return x @ self.weight

    model = extend(nn.Sequential(Greedy(), nn.Tanh(), linear(6, 4)))
    with pytest.raises(torch.OutOfMemoryError), backpack(BatchGrad()):
        extend(nn.CrossEntropyLoss())(model(x), y).backward()
    assert not any(hasattr(p, "grad_batch") for p in model.parameters())


def test_outputs_that_are_not_finite(x: Tensor, y: Tensor) -> None:
    model, loss = extend(linear(6, 4)), extend(nn.CrossEntropyLoss())
    for extension in (DiagGGNMC(), KFLR(), DiagHessian(), Variance()):
        with pytest.raises(NonFiniteError), backpack(extension):
            loss(model(x / 0), y).backward()
        assert not hasattr(model.weight, extension.savefield)


class Once(torch.autograd.Function):
    """The hyperbolic cosine, which torch can differentiate once only."""

    @staticmethod
    def forward(ctx: object, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x.cosh()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: object, gradient: Tensor) -> Tensor:
        return gradient * ctx.saved_tensors[0].sinh()


def test_an_operation_that_cannot_be_differentiated_twice(x: Tensor, y: Tensor) -> None:
    model = extend(Wrapped(lambda m, x: m.b(Once.apply(m.a(x))), a=linear(), b=linear(6, 4)))
    loss = extend(nn.CrossEntropyLoss())
    for extension in (DiagHessian(), BatchDiagHessian(), HutchinsonDiagonal()):
        with pytest.raises(SecondDerivativeError, match="@once_differ"), backpack(extension):
            loss(model(x), y).backward()
        assert all(not hasattr(p, extension.savefield) for p in model.parameters())
    with backpack(DiagGGNExact(), HMP()):
        loss(model(x), y).backward()
    with pytest.raises(SecondDerivativeError, match="@once_differentiable"):
        model.a.weight.hmp(model.a.weight)


def test_a_loss_that_cannot_be_differentiated_twice(x: Tensor, y: Tensor) -> None:
    """Its gradient comes without a graph, as that of a linear function does: not a zero Hessian."""
    model = extend(linear(6, 4))
    loss = extend(Convex(lambda f, y: Once.apply(f - y)))
    targets = torch.randn(len(x), 4).double()
    for extension in (DiagGGNExact(), DiagHessian(), KFLR()):
        with pytest.raises(SecondDerivativeError, match="@once_differ"), backpack(extension):
            loss(model(x), targets).backward()
        assert not hasattr(model.weight, extension.savefield)
    with backpack(BatchGrad()):
        loss(model(x), targets).backward()


def test_a_chain_that_cannot_be_differentiated_twice(x: Tensor, y: Tensor) -> None:
    class Cosh(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return Once.apply(x)

    model = extend(nn.Sequential(linear(), Cosh(), linear(6, 4)))
    loss = extend(nn.CrossEntropyLoss())
    with pytest.raises(SecondDerivativeError, match="@once_differ"), backpack(PCHMP()):
        loss(model(x), y).backward()
    assert not any(hasattr(p, "pchmp") for p in model.parameters())


def test_a_global_context_is_not_thread_safe() -> None:
    """Eight threads, eight models, eight extensions: the numbers of each alone."""
    work = {
        "mlp": DiagHessian(),
        "seed_cnn": KFLR(),
        "residual_with_inplace_relu": DiagGGNExact(),
        "transformer_encoder": BatchDiagGGNExact(),
        "language_model": BatchGrad(),
        "tied_weights": SqrtGGNExact(),
        "recurrent": Variance(),
        "weight_norm": BatchL2Grad(),
    }
    cases = {name: make(name) for name in work}
    alone = {}
    for name, extension in work.items():
        run(make_again := make(name), extension)
        alone[name] = collected(make_again, extension.savefield)
    start, errors = threading.Barrier(len(work)), []

    def go(name: str) -> None:
        start.wait()
        for _ in range(4):
            run(cases[name], work[name])
            found = collected(cases[name], work[name].savefield)
            for key, expected in alone[name].items():
                pairs = zip(found[key], expected, strict=True)
                errors.extend(float((a - b).abs().max()) for a, b in pairs)

    threads = [threading.Thread(target=go, args=(name,)) for name in work]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    passes = 4 * sum(len(v) for values in alone.values() for v in values.values())
    assert len(errors) == passes
    assert max(errors) < 1e-11


@pytest.mark.parametrize("extension", [KFLR(), DiagHessian(), Variance(), SqrtGGNExact()])
def test_a_closure_that_holds_the_loss_would_leak(extension: object, x: Tensor, y: Tensor) -> None:
    model, loss = extend(linear(6, 4)), extend(nn.CrossEntropyLoss())
    with backpack(extension):
        without, value = loss(model(x), y), loss(model(x), y)
        value.backward()
    held = [weakref.ref(without), weakref.ref(value)]
    del without, value
    assert [loss() for loss in held] == [None, None]  # at once, not by the garbage collector
