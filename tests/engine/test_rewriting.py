"""What is changed in a program leaves its numbers, and all that it is given, as they were."""

from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Tensor, nn
from torch.fx import GraphModule
from torch.nn import functional as F

from curvserve.engine.programs import written_down
from curvserve.engine.rewriting import shortened

aten = torch.ops.aten


def program(function: Callable[..., list[Tensor]], *arguments: Tensor) -> GraphModule:
    """A function as its operations, in the manner of an evaluation, and changed."""
    return shortened(written_down(function, *arguments))


def kinds(made: GraphModule) -> list[object]:
    """The operations of a program in their order."""
    return [node.target for node in made.graph.nodes if node.op == "call_function"]


def check(function: Callable[..., list[Tensor]], *arguments: Tensor) -> GraphModule:
    """A changed program, which gives the same numbers twice and writes to no argument."""
    before = [argument.clone() for argument in arguments]
    wanted = function(*arguments)
    made = program(function, *arguments)
    for _ in range(2):
        for own, expected in zip(made(*arguments), wanted, strict=True):
            assert torch.equal(own, expected) and own.stride() == expected.stride()
    assert all(map(torch.equal, arguments, before))
    return made


def differentiated(function: Callable[[Tensor], Tensor]) -> Callable[..., list[Tensor]]:
    """A function's result and what a cotangent becomes of it."""

    def both(x: Tensor, s: Tensor) -> list[Tensor]:
        own = x.detach().requires_grad_()
        with torch.enable_grad():
            result = function(own)
        (back,) = torch.autograd.grad(result, [own], s)
        return [result.detach(), back]

    return both


@pytest.mark.parametrize("pool", [nn.MaxPool2d(2), nn.MaxPool2d(3, 2, 1), nn.MaxPool2d(2, 1)])
@pytest.mark.parametrize("last", [False, True])
def test_maps_are_rectified_after_their_pooling(pool: nn.MaxPool2d, *, last: bool) -> None:
    x = torch.randn(3, 4, 9, 8).round(decimals=1)  # ties, and windows without a positive number
    x[0] = -x[0].abs()
    x = x.contiguous(memory_format=torch.channels_last) if last else x
    cotangent = torch.randn_like(pool(x))
    made = check(differentiated(lambda own: pool(own * 1.0).relu() * 1.0), x, cotangent)
    other = check(differentiated(lambda own: pool((own * 1.0).relu()) * 1.0), x, cotangent)
    assert all(map(torch.equal, made(x, cotangent), other(x, cotangent)))
    order = kinds(other)
    assert order.index(aten.max_pool2d_with_indices.default) < order.index(aten.relu_.default)


def test_a_map_that_something_else_reads_is_left_rectified() -> None:
    def both(x: Tensor) -> list[Tensor]:
        rectified = (x * 1.0).relu()
        return [F.max_pool2d(rectified, 2), rectified]

    order = kinds(check(both, torch.randn(2, 3, 4, 4)))
    assert order.index(aten.max_pool2d_with_indices.default) > order.index(aten.relu_.default)


def test_the_projection_of_attention_gets_its_cotangents_in_one_copy() -> None:
    attention = nn.MultiheadAttention(8, 2, batch_first=True)

    def attended(x: Tensor) -> Tensor:
        result: Tensor = attention(x, x, x, need_weights=False)[0]
        return result

    x = torch.randn(3, 5, 8)
    order = kinds(check(differentiated(attended), x, torch.randn(3, 5, 8)))
    assert aten.select_backward.default not in order
    assert order.count(aten.stack.default) == 1


def moved(x: Tensor) -> list[Tensor]:
    """Two copies one after the other."""
    first = x.permute(2, 0, 1).contiguous().view(6, 4, 5)
    return [first.transpose(0, 1).contiguous().view(2, 2, 30)]


def merged(x: Tensor) -> list[Tensor]:
    """A view of a copy that cuts an axis in the middle of another."""
    return [x.mT.contiguous().view(6, 20).mT.contiguous()]


def changed(x: Tensor) -> list[Tensor]:
    """A copy that is written to before it is copied."""
    first = x.mT.contiguous()
    second = first.permute(2, 1, 0).contiguous()
    first.mul_(2)
    return [second, first.permute(2, 0, 1).contiguous()]


@pytest.mark.parametrize(("function", "copies"), [(moved, 1), (merged, 2), (changed, 3)])
def test_copies_are_made_at_once_where_shapes_tell_how(
    function: Callable[[Tensor], list[Tensor]], copies: int
) -> None:
    made = check(function, torch.randn(4, 5, 6))
    assert kinds(made).count(aten.clone.default) == copies


def test_slices_that_are_missing_or_come_twice_are_added_up_as_before() -> None:
    def added(x: Tensor) -> list[Tensor]:
        zeros = [3, *x.shape]
        first, second = (aten.select_backward.default(x, zeros, 0, i) for i in (0, 1))
        return [first + second, first + second + first]

    assert aten.stack.default not in kinds(check(added, torch.randn(4, 5)))


def arguments_and_results(x: Tensor, y: Tensor) -> list[Tensor]:
    """Sums and products of arguments, of results, and of what is read later."""
    product = x @ y
    kept = product.relu()
    return [
        x + 1.0,
        product.sum(),
        kept,
        kept + 1.0,
        (x.mT @ y).mT * 2.0,
        (x.mT @ y) + (x.mT @ y).mT,
    ]


def views(x: Tensor, y: Tensor) -> list[Tensor]:
    """A view of what might be written over is read afterwards."""
    product = x @ y
    line = product[0]
    doubled = product * 2.0
    return [doubled, line + doubled.sum()]


@pytest.mark.parametrize("function", [arguments_and_results, views])
def test_nothing_is_written_over_that_is_read_again(
    function: Callable[..., list[Tensor]],
) -> None:
    check(function, torch.randn(4, 4), torch.randn(4, 4))


def test_a_product_that_nobody_reads_again_is_written_over() -> None:
    def function(x: Tensor) -> list[Tensor]:
        return [(x @ x).relu() + 1.0]

    assert kinds(check(function, torch.randn(3, 3))) == [
        aten.mm.default,
        aten.relu_.default,
        aten.add_.Tensor,
    ]


def test_writes_to_one_buffer_keep_their_order() -> None:
    def function(x: Tensor) -> list[Tensor]:
        buffer, total = torch.empty(4, 4), torch.zeros(4)
        products: list[Tensor] = []
        for own in (x, x + 1.0, x.mT):
            torch.mm(own, x, out=buffer)
            products.append(buffer.square_().sum(0))
            total += products[-1]
        return [total, *products[::-1]]

    check(function, torch.randn(4, 4))


def test_a_result_is_computed_with_what_it_needs_before_the_next() -> None:
    def function(x: Tensor, y: Tensor) -> list[Tensor]:
        chain: Sequence[Tensor] = [x @ y, x @ y @ y, x @ y @ y @ y]
        return [own.sum() for own in chain]

    order = kinds(check(function, torch.randn(3, 3), torch.randn(3, 3)))
    places = [i for i, kind in enumerate(order) if kind is aten.sum.default]
    assert places[0] < order.index(aten.mm.default) + 2


def test_random_numbers_are_drawn_in_their_order() -> None:
    def function(x: Tensor) -> list[Tensor]:
        first, second = torch.rand_like(x), torch.rand_like(x)
        return [second + 1.0, first + 1.0]

    x = torch.zeros(4)
    made = program(function, x)
    torch.manual_seed(0)
    wanted = function(x)
    torch.manual_seed(0)
    assert all(map(torch.equal, made(x), wanted))
