"""Products that leave out zeros, with every set of instructions that this machine has."""

import ctypes
import mmap
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from curvserve.engine import Evaluator, backpack, channels_last, evaluate, extend, native
from curvserve.engine.convolutions import sent_back
from curvserve.engine.extensions import DiagGGNExact
from curvserve.engine.native import library, sparse
from tests.engine.compiled_kernels import NAMES, needs_compiler

pytestmark = needs_compiler

NUMBERS = st.sampled_from([torch.float32, torch.float64])


@pytest.fixture(params=NAMES)
def instructions(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setattr(library, "instructions", lambda: request.param)
    return str(request.param)


@pytest.fixture
def threads() -> Iterator[Any]:
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@pytest.fixture
def always(monkeypatch: pytest.MonkeyPatch) -> None:
    take_always(monkeypatch)


def take_always(patch: pytest.MonkeyPatch) -> None:
    """Whatever it costs."""
    patch.setattr(sparse, "_PAYS", 1e9)
    patch.setattr(sparse, "_LEAST", 0)


def few(generator: torch.Generator, dtype: torch.dtype, *shape: int, share: float = 0.2) -> Tensor:
    """Numbers most of which are zero."""
    kept = torch.rand(*shape, generator=generator) < share
    return (torch.randn(*shape, generator=generator, dtype=torch.float64) * kept).to(dtype)


def images(generator: torch.Generator, dtype: torch.dtype, *shape: int, share: float = 1) -> Tensor:
    return channels_last(few(generator, dtype, *shape, share=share))


def plain(a: Tensor, columns: list[Tensor], axes: int, *, squared: bool) -> Tensor:
    """The same in float64, sample by sample."""
    a = a.double().flatten(1, axes).flatten(2)
    rows = [s_n.T @ a_n for s in columns for s_n, a_n in zip(s.double(), a, strict=True)]
    return torch.stack([row.square() if squared else row for row in rows]).sum(0)


def close(found: Tensor, expected: Tensor, terms: Tensor) -> None:
    """Up to rounding of sums, whose terms may cancel each other."""
    off = (found.double() - expected).norm() / terms.norm().clamp_min(1e-300)
    assert off < (1e-6 if found.dtype == torch.float32 else 1e-14)


@pytest.mark.parametrize("name", NAMES)
@settings(deadline=None, max_examples=60)
@given(st.data())
def test_row_sums_of_any_sizes_and_strides(name: str, data: Any) -> None:
    draw = data.draw
    generator = torch.Generator().manual_seed(draw(st.integers(0, 1000)))
    samples, outputs = draw(st.integers(1, 5)), draw(st.integers(1, 37))
    height, width = draw(st.integers(1, 12)), draw(st.integers(1, 12))
    taps, step = draw(st.integers(1, min(height, width))), draw(st.integers(1, 2))
    channels, dtype = draw(st.sampled_from([1, 3, 8, 16, 20, 32, 60])), draw(NUMBERS)
    image = few(generator, dtype, samples, height, width, channels, share=1)
    if draw(st.booleans()):  # channels first in memory
        image = image.movedim(-1, 1).contiguous().movedim(1, -1)
    view = image.unfold(1, taps, step).unfold(2, taps, step).movedim(3, -1)
    length = view.shape[1] * view.shape[2]
    share, squared = draw(st.sampled_from([0.0, 0.1, 0.5, 1.0])), draw(st.booleans())
    columns = [
        few(generator, dtype, samples, length, outputs, share=share)
        for _ in range(draw(st.integers(1, 3)))
    ]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(library, "instructions", lambda: name)
        take_always(patch)
        found = sparse.row_sum(view, columns, 2, squared=squared)
    assert found is not None
    own, sums = found
    assert own.dtype == sums.dtype == dtype
    assert own.shape == (outputs, taps * taps * channels)
    sizes = view.abs(), [s.abs() for s in columns]
    close(own, plain(view, columns, 2, squared=squared), plain(*sizes, 2, squared=squared))
    whole = torch.stack(columns).double()
    close(sums, whole.sum((0, 1, 2)), whole.abs().sum((0, 1, 2)))


@pytest.mark.parametrize("name", NAMES)
@settings(deadline=None, max_examples=60)
@given(st.data())
def test_gradients_of_convolutions_of_any_options(name: str, data: Any) -> None:
    draw = data.draw
    generator = torch.Generator().manual_seed(draw(st.integers(0, 1000)))
    pair = st.tuples(st.integers(1, 3), st.integers(1, 3))
    taps, stride, dilation = draw(pair), draw(pair), draw(pair)
    padding = draw(st.tuples(st.integers(0, 3), st.integers(0, 3)))
    reach = [
        gap * (size - 1) + 1 - 2 * pad
        for size, gap, pad in zip(taps, dilation, padding, strict=True)
    ]
    height, width = (draw(st.integers(max(1, least), 14)) for least in reach)
    samples, outputs = draw(st.integers(1, 4)), draw(st.integers(1, 35))
    channels, dtype = draw(st.sampled_from([1, 3, 16, 20, 32])), draw(NUMBERS)
    a = images(generator, dtype, samples, channels, height, width)
    weight = few(generator, dtype, outputs, channels, *taps, share=1)
    options = (stride, padding, dilation)
    shape = F.conv2d(a, weight, None, *options).shape
    s = images(generator, dtype, *shape, share=draw(st.sampled_from([0.0, 0.2, 1.0])))
    arguments = [outputs], *options, False, [0, 0], 1, [True] * 3
    wanted, terms = (
        torch.ops.aten.convolution_backward(*each, *arguments)
        for each in (
            [t.double() for t in (s, a, weight)],
            [t.double().abs() for t in (s, a, weight)],
        )
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(library, "instructions", lambda: name)
        take_always(patch)
        inputs = torch.ops.curvserve.convolution_inputs(s, a, weight, *options)
        found = (inputs, *torch.ops.curvserve.convolution_weight(s, a, weight, *options))
    for own, expected, term in zip(found, wanted, terms, strict=True):
        assert own.shape == expected.shape and own.dtype == dtype
        close(own, expected, term)


@pytest.mark.usefixtures("always")
@pytest.mark.parametrize("channels", [1, 3, 32])
def test_the_bits_do_not_depend_on_the_threads(
    channels: int, instructions: str, threads: Any
) -> None:
    generator = torch.Generator().manual_seed(0)
    a = images(generator, torch.float32, 23, channels, 12, 12)
    weight = torch.randn(37, channels, 3, 3, generator=generator)
    s = images(generator, torch.float32, 23, 37, 10, 10, share=0.2)
    options = ([1, 1], [0, 0], [1, 1])
    seen, lines = (
        a.permute(0, 2, 3, 1)[:, :10, :10].flatten(1, 2),
        s.permute(0, 2, 3, 1).flatten(1, 2),
    )
    found = []
    for count in (1, 2, 3, 5):
        threads(count)
        rows = native.square_sum(seen, [lines], 1)
        inputs = torch.ops.curvserve.convolution_inputs(s, a, weight, *options)
        weights = torch.ops.curvserve.convolution_weight(s, a, weight, *options)
        found.append([rows, inputs, *weights])
    for other in found[1:]:
        assert all(map(torch.equal, found[0], other))


def at_the_end_of_memory(values: Tensor) -> tuple[Tensor, Any]:
    """The same numbers, behind the last of which nothing may be read."""
    page, size = mmap.PAGESIZE, values.numel() * values.element_size()
    pages = -(-size // page)
    memory = mmap.mmap(-1, (pages + 1) * page)
    start = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    libc = ctypes.CDLL(None, use_errno=True)
    behind = ctypes.c_void_p(start + pages * page)
    assert libc.mprotect(behind, ctypes.c_size_t(page), 0) == 0
    flat = torch.frombuffer(
        memory, dtype=values.dtype, count=values.numel(), offset=pages * page - size
    )
    moved = flat.as_strided(values.shape, values.stride())
    return moved.copy_(values), memory


@pytest.mark.usefixtures("always")
@pytest.mark.parametrize("channels", [1, 3, 5, 20])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_nothing_is_read_behind_the_end(channels: int, dtype: Any, instructions: str) -> None:
    generator = torch.Generator().manual_seed(0)
    options = ([1, 1], [0, 0], [1, 1])
    given = [
        images(generator, dtype, 3, 17, 4, 4, share=0.3),
        images(generator, dtype, 3, channels, 6, 6),
        torch.randn(17, channels, 3, 3, generator=generator).to(dtype),
    ]
    moved, _kept = zip(*map(at_the_end_of_memory, given), strict=True)
    for operation in ("convolution_inputs", "convolution_weight"):
        run = getattr(torch.ops.curvserve, operation)
        found, expected = run(*moved, *options), run(*given, *options)
        pairs = (
            [(found, expected)] if isinstance(found, Tensor) else zip(found, expected, strict=True)
        )
        assert all(torch.equal(*pair) for pair in pairs)


@pytest.mark.usefixtures("always")
@pytest.mark.parametrize("value", [torch.inf, -torch.inf, torch.nan])
def test_infinity_times_zero_is_not_left_out(value: float) -> None:
    generator = torch.Generator().manual_seed(0)
    a = images(generator, torch.float64, 2, 3, 6, 6)
    weight = torch.randn(4, 3, 3, 3, generator=generator, dtype=torch.float64)
    s = images(generator, torch.float64, 2, 4, 4, 4, share=0.2)
    options = ([1, 1], [0, 0], [1, 1])
    a[1, 2, 3, 3] = value
    own, _ = torch.ops.curvserve.convolution_weight(s, a, weight, *options)
    arguments = [4], *options, False, [0, 0], 1
    wanted = torch.ops.aten.convolution_backward(s, a, weight, *arguments, [False, True, False])
    assert not own[:, 2].isfinite().any() and torch.equal(own.isnan(), wanted[1].isnan())
    weight[1, 1, 1, 1] = value
    inputs = torch.ops.curvserve.convolution_inputs(s, a, weight, *options)
    wanted = torch.ops.aten.convolution_backward(s, a, weight, *arguments, [True, False, False])
    assert not inputs[:, 1].isfinite().all() and torch.equal(inputs.isnan(), wanted[0].isnan())


def test_cotangents_that_are_not_zero_go_to_the_dense_product() -> None:
    generator = torch.Generator().manual_seed(0)
    for share, taken in [(0.05, True), (0.2, True), (0.9, False), (1.0, False)]:
        a = few(generator, torch.float32, 16, 64, 288, share=1)
        s = few(generator, torch.float32, 16, 64, 48, share=share)
        assert native.pays(s, a.shape[1:], a.stride()[1:], 1) == taken


@pytest.mark.parametrize(
    "samples, positions, outputs, inputs",
    [
        pytest.param(2, 4, 8, 9, id="little to do"),
        pytest.param(64, 4, 256, 256, id="few positions for each sample"),
        pytest.param(4, 64, 64, 3, id="short patches"),
        pytest.param(2, 5000, 16, 32, id="lists that leave the cache"),
    ],
)
def test_where_it_does_not_pay(samples: int, positions: int, outputs: int, inputs: int) -> None:
    generator = torch.Generator().manual_seed(0)
    a = few(generator, torch.float32, samples, positions, inputs, share=1)
    s = few(generator, torch.float32, samples, positions, outputs, share=0.3)
    assert not native.pays(s, a.shape[1:], a.stride()[1:], 1)


def pooled() -> nn.Sequential:
    """A net whose convolutions are pooled."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 16, 3, padding="same"), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(16, 32, 3, padding="valid", bias=False), nn.MaxPool2d(3, 2), nn.ReLU(),
        nn.Conv2d(32, 16, (2, 3), stride=(1, 2), dilation=(2, 1), padding=1), nn.MaxPool2d(2),
        nn.Flatten(), nn.LazyLinear(10),
    )  # fmt: skip


FIELDS = ["grad", "diag_ggn_mc", "diag_ggn_exact", "sum_grad_squared", "grad_batch", "kfac"]


@pytest.fixture
def taken(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What is computed without zeros."""
    found: list[str] = []
    run = sparse._run

    def noted(kernel: Any, *arguments: Any, **more: Any) -> None:
        found.append("squares" if more.get("squared") else kernel.__name__)
        run(kernel, *arguments, **more)

    monkeypatch.setattr(sparse, "_LEAST", 0)
    monkeypatch.setattr(sparse, "_run", noted)
    return found


def test_a_net_has_the_numbers_that_torch_gives(
    taken: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    net = pooled().double()
    x, y = torch.randn(16, 3, 24, 24, dtype=torch.float64), torch.randint(10, (16,))
    net(x)

    def found() -> dict[str, Any]:
        return evaluate(net, nn.CrossEntropyLoss(), x, y, FIELDS, seed=3).quantities

    own = found()
    assert {"squares", "sparse_rows", "sparse_spread"} == set(taken)
    monkeypatch.setattr(library, "instructions", lambda: None)
    for field, expected in found().items():
        for name, tensor in expected.items():
            torch.testing.assert_close(own[field][name], tensor, rtol=1e-10, atol=1e-14)


def test_a_block_has_them_too(taken: list[str]) -> None:
    net, loss = extend(pooled().double()), extend(nn.CrossEntropyLoss())
    x = channels_last(torch.randn(16, 3, 24, 24, dtype=torch.float64))
    y = torch.randint(10, (16,))
    with backpack(DiagGGNExact()):
        loss(net(x), y).backward()
    assert "sparse_spread" in taken and "squares" in taken
    wanted = evaluate(net, nn.CrossEntropyLoss(), x, y, ["grad", "diag_ggn_exact"]).quantities
    for name, p in net.named_parameters():
        torch.testing.assert_close(p.grad, wanted["grad"][name], rtol=1e-10, atol=1e-14)
        own: Any = p
        torch.testing.assert_close(
            own.diag_ggn_exact, wanted["diag_ggn_exact"][name], rtol=1e-10, atol=1e-14
        )


def test_a_program_goes_on_when_the_zeros_have_become_few(taken: list[str]) -> None:
    net = pooled()
    x, y = torch.randn(16, 3, 24, 24), torch.randint(10, (16,))
    net(x)
    evaluator = Evaluator(net, nn.CrossEntropyLoss(), eager_calls=1)
    for seed in range(4):
        evaluator(x, y, ["grad", "diag_ggn_mc"], seed=seed)
    assert evaluator.compiled() == 1 and not evaluator.refusals()
    before = len(taken)
    evaluator(x, y, ["grad", "diag_ggn_mc"], seed=0)
    assert len(taken) > before
    with torch.no_grad():
        net.get_parameter(
            "3.weight"
        ).zero_()  # all of a window is the same: one of its cotangents is left
    for values in (x, torch.zeros_like(x)):
        own = evaluator(values, y, ["grad", "diag_ggn_mc"], seed=1)
        other = evaluate(net, nn.CrossEntropyLoss(), values, y, ["grad", "diag_ggn_mc"], seed=1)
        for field in own.quantities:
            for name, tensor in own.quantities[field].items():
                assert torch.equal(tensor, other.quantities[field][name])
    assert not evaluator.refusals()


def test_what_the_operators_do_not_know_is_torchs(taken: list[str]) -> None:
    x = torch.randn(4, 4, 12, 12, requires_grad=True)
    nets: list[nn.Module] = [
        nn.Conv2d(4, 4, 3, groups=2),
        nn.ConvTranspose2d(4, 4, 3),
        nn.Conv2d(4, 4, 3).half(),
    ]
    for net in nets:
        dtype = next(net.parameters()).dtype
        value = F.max_pool2d(net(x.to(dtype)), 2).sum()
        (wanted,) = torch.autograd.grad(value, x, retain_graph=True)
        with sent_back(value, convolved=True):
            (found,) = torch.autograd.grad(value, x)
        assert torch.equal(found, wanted)
    assert not taken
