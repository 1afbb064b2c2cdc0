"""The passes over all parameters, with every set of instructions that this machine has."""

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from curvserve.engine.native import library, passes
from tests.engine.compiled_kernels import NAMES, needs_compiler

pytestmark = needs_compiler

TYPES = st.sampled_from([torch.float32, torch.float64])
SIZES = st.lists(
    st.sampled_from([0, 1, 15, 16, 17, 100, 16384, 16385, 40000]), min_size=1, max_size=6
)


@pytest.fixture(params=NAMES)
def instructions(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(library, "instructions", lambda: request.param)


@pytest.fixture
def threads() -> Any:
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


def drawn(sizes: list[int], dtype: torch.dtype, seed: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(size, generator=generator, dtype=dtype) for size in sizes]


@pytest.mark.parametrize("name", NAMES)
@settings(deadline=None, max_examples=40)
@given(SIZES, TYPES, st.integers(0, 1000), st.floats(-1, 1), st.floats(1e-6, 10))
def test_any_sizes(
    name: str, sizes: list[int], dtype: torch.dtype, seed: int, factor: float, shift: float
) -> None:
    p, g, h = (drawn(sizes, dtype, 3 * seed + i) for i in range(3))
    h = [each.abs() for each in h]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(library, "instructions", lambda: name)
        assert passes.fit(p, g, h)
        moved = passes.divided(p, g, h, factor, shift)
        norm = passes.distance(p, moved)
        finite = passes.are_finite(moved)
    wanted = [torch.addcdiv(a, b, c + shift, value=factor) for a, b, c in zip(p, g, h, strict=True)]
    assert all(map(torch.equal, moved, wanted))  # to the bit
    changes = [(a - b).double() for a, b in zip(p, wanted, strict=True)]
    assert norm == pytest.approx(torch.cat(changes).norm().item(), rel=1e-13, abs=0)
    assert finite


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("value", [torch.inf, -torch.inf, torch.nan, -torch.nan])
@pytest.mark.parametrize("place", [0, 15, 16, 16383, 16384, 39999])
def test_one_number_that_is_not_finite_is_found(
    instructions: None, dtype: torch.dtype, value: float, place: int
) -> None:
    most = torch.finfo(dtype).max
    tensors = [torch.full((7,), most, dtype=dtype), torch.full((40000,), -most, dtype=dtype)]
    zeros = [torch.zeros_like(tensor) for tensor in tensors]
    assert passes.are_finite(tensors)
    tensors[1][place] = value
    assert not passes.are_finite(tensors)
    assert not passes.distance(zeros, tensors) < torch.inf


def test_the_bits_do_not_depend_on_the_threads(instructions: None, threads: Any) -> None:
    sizes = [300_000, 10, 170_001]
    x, y = drawn(sizes, torch.float32, 0), drawn(sizes, torch.float32, 1)
    found = []
    for count in (1, 2, 3, 5):
        threads(count)
        found.append(passes.distance(x, y))
    assert len(set(found)) == 1


def test_what_does_not_fit_is_told() -> None:
    a = torch.zeros(4, 3, 2, 2)
    channels_last = a.to(memory_format=torch.channels_last)
    assert passes.fit([a], [a]) and passes.fit([channels_last], [channels_last.clone()])
    assert not passes.fit([])
    assert not passes.fit([a], [channels_last])
    assert not passes.fit([a], [a[:2]])
    assert not passes.fit([a], [a.double()])
    assert not passes.fit([a, a.double()])
    assert not passes.fit([a.half()])
    assert not passes.fit([a[:, :, ::2]])
    assert not passes.fit([a.to("meta")])
    assert not passes.fit([a.expand(2, 4, 3, 2, 2)])


def test_without_the_library_nothing_fits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(library, "instructions", lambda: None)
    assert not passes.fit([torch.zeros(3)])
