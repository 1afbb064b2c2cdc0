"""Products with Jacobian, Hessian and Gauss-Newton matrix, against dense ones and BackPACK's."""

import inspect
from collections.abc import Callable
from functools import partial

import pytest
import torch
from backpack.hessianfree import ggnvp, hvp, lop, rop
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from torch.nn.utils import parametrizations

from curvserve.engine import products
from curvserve.engine.errors import EngineError, SecondDerivativeError
from tests.engine import reference
from tests.engine.live import counting_tensors
from tests.engine.zoo import Case, make

PEERS = {
    "R_op": rop.R_op,
    "L_op": lop.L_op,
    "jacobian_vector_product": rop.jacobian_vector_product,
    "transposed_jacobian_vector_product": lop.transposed_jacobian_vector_product,
    "hessian_vector_product": hvp.hessian_vector_product,
    "ggn_vector_product": ggnvp.ggn_vector_product,
    "ggn_vector_product_from_plist": ggnvp.ggn_vector_product_from_plist,
}


def flat(tensors: object) -> Tensor:
    return torch.cat([t.flatten() for t in tensors])


def random_like(tensors: list[Tensor], seed: int = 5) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(t.shape, generator=generator, dtype=t.dtype) for t in tensors]


def dense_hessian(value: Tensor, parameters: list[Tensor]) -> Tensor:
    slopes = torch.autograd.grad(value, parameters, create_graph=True, materialize_grads=True)
    rows = [
        torch.autograd.grad(unit, parameters, retain_graph=True, materialize_grads=True)
        if unit.requires_grad
        else [torch.zeros_like(p) for p in parameters]
        for unit in flat(slopes)
    ]
    return torch.stack([flat(row) for row in rows])


def whole(case: Case) -> tuple[list[nn.Parameter], Tensor, Tensor]:
    """Parameters, Hessian and Gauss-Newton matrix over all of them, by plain loops."""
    parameters = list(reference.trained(case.model).values())
    outputs = reference.outputs_of(case.model, case.inputs)
    jacobian = torch.cat([j.flatten(1) for j in reference.jacobian(outputs, parameters)], 1)
    ggn = jacobian.T @ reference.loss_hessian(case.loss, outputs, case.targets) @ jacobian
    return parameters, dense_hessian(case.loss(outputs, case.targets), parameters), ggn


def test_the_arguments_are_named_as_backpacks() -> None:
    for name, theirs in PEERS.items():
        ours = inspect.signature(getattr(products, name)).parameters.values()
        expected = inspect.signature(theirs).parameters.values()
        assert [(p.name, p.default) for p in ours] == [(p.name, p.default) for p in expected], name


@pytest.mark.parametrize("name", ["mlp", "tied_weights", "seed_cnn", "mlp_squared_error"])
def test_products_are_those_of_the_dense_matrices_and_of_backpack(name: str) -> None:
    case = make(name)
    parameters, hessian, ggn = whole(case)
    output = reference.outputs_of(case.model, case.inputs)
    loss = case.loss(output, case.targets)
    v, w = random_like(parameters), random_like([output])
    slopes = torch.autograd.grad(loss, parameters, create_graph=True)
    jacobian = torch.cat([j.flatten(1) for j in reference.jacobian(output, parameters)], 1)
    expected = {
        "R_op": (jacobian @ flat(v), {"ys": output, "xs": parameters, "vs": v}),
        "L_op": (flat(w) @ jacobian, {"ys": output, "xs": parameters, "ws": w}),
        "jacobian_vector_product": (jacobian @ flat(v), {"f": output, "x": parameters, "v": v}),
        "transposed_jacobian_vector_product": (
            flat(w) @ jacobian,
            {"f": output, "x": parameters, "v": w},
        ),
        "hessian_vector_product": (hessian @ flat(v), {"f": loss, "params": parameters, "v": v}),
        "ggn_vector_product": (
            ggn @ flat(v),
            {"loss": loss, "output": output, "model": case.model, "v": v},
        ),
        "ggn_vector_product_from_plist": (
            ggn @ flat(v),
            {"loss": loss, "output": output, "plist": parameters, "v": v},
        ),
    }
    assert expected.keys() == PEERS.keys()
    for function, (product, arguments) in expected.items():
        ours = flat(getattr(products, function)(**arguments))
        torch.testing.assert_close(ours, product, rtol=1e-9, atol=1e-12)
        peers = flat(PEERS[function](**arguments))
        torch.testing.assert_close(ours, peers, rtol=1e-12, atol=1e-14)
    again = products.hessian_vector_product(loss, parameters, v, grad_params=slopes)
    torch.testing.assert_close(flat(again), hessian @ flat(v), rtol=1e-9, atol=1e-12)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(st.integers(1, 4), st.integers(1, 4), st.integers(0, 2**31), st.sampled_from([0, 1, 2]))
def test_operators_are_the_dense_matrices(n: int, m: int, seed: int, frozen: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    draw = partial(torch.randn, generator=generator, dtype=torch.float64)
    # Non-contiguous, and one of them in no use.
    weight, scale, idle = draw(m, n).T.requires_grad_(), draw(2 * n)[::2].requires_grad_(), draw(3)
    inputs = draw(5, m)
    chosen = [[weight, scale, idle.requires_grad_()], [weight], [scale]][frozen]
    for p in {weight, scale} - set(chosen):
        p.requires_grad_(False)
    output = (inputs @ weight.T).tanh() * scale
    loss = output.exp().mean()
    hessian = products.hessian_operator(loss, chosen)
    ggn = products.ggn_operator(loss, output, chosen)
    jacobian = torch.cat(
        [
            torch.stack([flat(torch.autograd.grad(y, p, retain_graph=True, materialize_grads=True))
                         for y in output.flatten()])
            for p in chosen
        ], 1,
    )  # fmt: skip
    curvature = output.detach().exp().flatten() / output.numel()
    gauss_newton = jacobian.T @ (curvature[:, None] * jacobian)
    for operator, matrix in ((hessian, dense_hessian(loss, chosen)), (ggn, gauss_newton)):
        for attempt in range(2):
            v = random_like(chosen, attempt)
            found = operator([t.T.contiguous().T if t.dim() > 1 else t for t in v])
            assert [t.shape for t in found] == [p.shape for p in chosen]
            assert not any(t.requires_grad for t in found)
            torch.testing.assert_close(flat(found), matrix @ flat(v), rtol=1e-9, atol=1e-12)


def test_outputs_that_are_several() -> None:
    x, y = (torch.randn(3).double().requires_grad_() for _ in range(2))
    outputs, v, w = (x * y, x.sin()), random_like([x, y]), random_like([x, y], 1)
    pushed = products.R_op(outputs, [x, y], v)
    expected = [y * v[0] + x * v[1], x.cos() * v[0]]
    torch.testing.assert_close(flat(pushed), flat(expected).detach())
    pulled = products.L_op(outputs, (x, y), w)
    expected = [y * w[0] + x.cos() * w[1], x * w[0]]
    torch.testing.assert_close(flat(pulled), flat(expected).detach())
    loss = outputs[0].square().sum() + outputs[1].square().sum() / 2
    product = products.ggn_operator(loss, outputs, [x, y])(v)
    back = products.L_op(outputs, [x, y], [2 * pushed[0], pushed[1]])
    torch.testing.assert_close(flat(product), flat(back))


def test_an_inner_tensor_can_be_differentiated_by() -> None:
    weight = torch.randn(3).double().requires_grad_()
    inner = weight.exp()
    (found,) = products.hessian_operator((inner**3).sum(), inner)([torch.ones(3).double()])
    torch.testing.assert_close(found, 6 * inner.detach())


def test_what_does_not_depend_gives_zeros() -> None:
    x, y = (torch.randn(3).double().requires_grad_() for _ in range(2))
    v = torch.ones(3).double()
    linear = (2 * x).sum()
    for product in (
        products.hessian_vector_product(linear, [x, y], [v, v]),
        products.hessian_vector_product((x**2).sum(), [y], [v]),
        products.R_op([x * 2], [y], [v]),
        products.L_op([x * 2], [y], [v]),
        products.ggn_operator(linear, x, [x])([v]),
    ):
        assert all(torch.equal(p, torch.zeros(3).double()) for p in product)
        assert not any(p.requires_grad for p in product)


def test_products_that_are_not_detached_can_be_differentiated() -> None:
    x = torch.randn(3).double().requires_grad_()
    v = torch.randn(3).double()
    (product,) = products.hessian_vector_product((x**4).sum(), x, v, detach=False)
    torch.testing.assert_close(torch.autograd.grad(product.sum(), x)[0], 24 * x.detach() * v)
    for operator in (products.R_op, products.L_op):
        (product,) = operator(x**2, x, v, detach=False)
        torch.testing.assert_close(torch.autograd.grad(product.sum(), x)[0], 2 * v)


@pytest.mark.parametrize("operator", [products.R_op, products.L_op])
def test_the_graph_is_kept_unless_told_otherwise(operator: Callable[..., tuple[Tensor]]) -> None:
    x, v = torch.randn(3).requires_grad_(), torch.ones(3)
    y = x.sin()
    first, last = operator(y, x, v), operator(y, x, v, retain_graph=False)
    assert torch.equal(first[0], last[0])
    with pytest.raises(RuntimeError, match="backward through the graph a second time"):
        operator(y, x, v)


def test_products_need_no_grad_mode() -> None:
    x = torch.randn(3).double().requires_grad_()
    f, v = (x**3).sum(), torch.ones(3).double()
    with torch.no_grad():
        (found,) = products.hessian_vector_product(f, x, v)
        (pushed,) = products.R_op(f, x, v)
    torch.testing.assert_close(found, 6 * x.detach())
    torch.testing.assert_close(pushed, (3 * x.detach() ** 2).sum())


@pytest.mark.parametrize("matrix", ["hessian", "ggn"])
def test_an_operator_leaves_no_tensor_alive(matrix: str) -> None:
    case = make("mlp")
    parameters = list(case.model.parameters())
    v = random_like(parameters)
    with counting_tensors() as live:
        output = case.model(case.inputs)
        loss = case.loss(output, case.targets)
        if matrix == "hessian":
            operator = products.hessian_operator(loss, parameters)
        else:
            operator = products.ggn_operator(loss, output, parameters)
        held = live()
        for _ in range(50):
            operator(v)
        assert live() == held
        del operator, output, loss
        assert live() == 0


class Once(torch.autograd.Function):
    """The sine, differentiable once."""

    @staticmethod
    def forward(ctx: object, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x.sin()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: object, gradient: Tensor) -> Tensor:
        return gradient * ctx.saved_tensors[0].cos()


def attention(x: Tensor) -> Tensor:
    return scaled_dot_product_attention(*3 * [x.view(1, 1, -1, 1)])


def normed(x: Tensor) -> Tensor:
    return torch._weight_norm(x.view(1, -1), torch.full((1, 1), 2.0)).sin()


CANNOT = {
    "a cut graph": (Once.apply, "marked with @once_differentiable"),
    "a cut graph with a way around": (lambda x: Once.apply(x) * x, "@once_differentiable"),
    "fused attention": (attention, "derivative for .*attention.* is not implemented"),
    "fused weight norm": (normed, "wrong second derivative of weight_norm"),
}


@pytest.mark.parametrize("name", CANNOT)
def test_second_derivatives_that_torch_lacks_or_has_wrong_are_refused(name: str) -> None:
    function, match = CANNOT[name]
    x, v = torch.randn(4).requires_grad_(), torch.ones(4)
    y = function(x)
    f = y.square().sum()
    with pytest.raises(SecondDerivativeError, match=match):
        products.hessian_vector_product(f, x, v)
    with pytest.raises(SecondDerivativeError, match=match):
        products.hessian_operator(f, x)([v])
    with pytest.raises(SecondDerivativeError, match=match):
        slopes = torch.autograd.grad(f, x, create_graph=True)
        products.hessian_vector_product(f, x, v, slopes)
    with pytest.raises(SecondDerivativeError, match=match):
        products.ggn_operator(f, x, x)([v])
    torch.testing.assert_close(
        products.L_op(y, x, torch.ones_like(y))[0], torch.autograd.grad(y.sum(), x)[0]
    )


def test_the_jacobian_of_weight_norm_is_right() -> None:
    x = torch.randn(4).double().requires_grad_()
    y = torch._weight_norm(x.view(1, -1), torch.full((1, 1), 2.0).double())
    dense = reference.jacobian(y, [x])[0]
    for unit in torch.eye(4).double():
        torch.testing.assert_close(products.R_op(y, x, unit)[0].flatten(), dense @ unit)


@pytest.mark.parametrize("name", ["attention", "recurrent", "weight norm"])
def test_plain_kernels_can_be_differentiated_twice(name: str) -> None:
    torch.manual_seed(0)
    layer = {
        "attention": lambda: nn.TransformerEncoderLayer(4, 2, 3, 0.0, batch_first=True),
        "recurrent": lambda: nn.LSTM(4, 2, proj_size=1),
        "weight norm": lambda: parametrizations.weight_norm(nn.Linear(4, 2)),
    }[name]()
    layer.double()
    inputs = torch.randn(2, 3, 4).double()
    parameters = list(layer.parameters())
    start = [p.detach().clone() for p in parameters]
    v = random_like(parameters)

    def slopes(step: float) -> Tensor:
        with torch.no_grad():
            for p, begin, along in zip(parameters, start, v, strict=True):
                p.copy_(begin + step * along)
        value = reference.outputs_of(layer, inputs).square().sum()
        return flat(torch.autograd.grad(value, parameters))

    differences = (slopes(1e-5) - slopes(-1e-5)) / 2e-5
    slopes(0.0)
    with products.plain_kernels():
        value = reference.outputs_of(layer, inputs).square().sum()
    found = flat(products.hessian_operator(value, parameters)(v))
    assert float((found - differences).norm() / differences.norm()) < 1e-8


def test_errors_of_torch_that_say_something_else_stay_as_they_are() -> None:
    x = torch.randn(3).requires_grad_()
    f = (x.exp() ** 2).sum()
    f.backward()
    with pytest.raises(RuntimeError, match="second time") as caught:
        products.hessian_vector_product(f, x, torch.ones(3))
    assert not isinstance(caught.value, EngineError)


X = torch.linspace(1, 2, 3).requires_grad_()
F = (X**2).sum()
V, W = torch.ones(3), torch.ones(4)
UNUSED = torch.ones(3).requires_grad_()
FROZEN = nn.Linear(2, 2).requires_grad_(False)
REFUSED = {
    "a vector of another shape": (lambda: products.R_op(X * 2, X, W), r"vs: .* \[\(3,\)\], got"),
    "too many vectors": (lambda: products.L_op(X * 2, X, [V, V]), r"ws: .* got \[\(3,\), \(3,\)\]"),
    "no vector": (lambda: products.hessian_vector_product(F, X, []), r"v: expected .* got \[\]"),
    "an operator's vector": (lambda: products.hessian_operator(F, X)([W]), r"v: .*got \[\(4,\)\]"),
    "the other operator's": (lambda: products.ggn_operator(F, X, X)([V, V]), "v: expected"),
    "gradients of another shape": (
        lambda: products.hessian_vector_product(F, X, V, [W]), "grad_params: expected"),
    "gradients without a graph": (
        lambda: products.hessian_vector_product(F, X, V, [V]),
        "grad_params have no graph: .* create_graph=True"),
    "no parameters": (lambda: products.hessian_operator(F, []), "params: no tensor is given"),
    "a frozen model": (
        lambda: products.ggn_vector_product(F, X, FROZEN, []), "plist: no tensor is given"),
    "a frozen parameter": (
        lambda: products.hessian_operator(F, [X, V]), r"params\[1\], of shape \(3,\), does not"),
    "an output without a graph": (lambda: products.R_op([X * 2, V], X, V), r"ys\[1\], of shape"),
    "an input without a gradient": (lambda: products.L_op(X * 2, V, V), r"xs\[0\], of shape"),
    "a loss without a graph": (
        lambda: products.hessian_operator(F.detach(), X), r"the function\[0\], of shape \(\)"),
    "a loss that is no number": (
        lambda: products.hessian_operator(X * 2, X), r"one element, not the shape \(3,\)"),
    "a loss of something else": (
        lambda: products.ggn_operator(F, UNUSED * 2, UNUSED), "not computed from this output"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_arguments_that_do_not_fit_are_refused(name: str) -> None:
    call, match = REFUSED[name]
    with pytest.raises(ValueError, match=match):
        call()
