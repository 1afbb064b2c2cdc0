"""The passes of a step: by our kernels, and by torch where these do not compute."""

from collections.abc import Callable

import pytest
import torch
from curvserve_client.rules.preconditioned import plain_step, preconditioned_step
from torch import Tensor

from curvserve.engine.native import library
from curvserve.sessions import passes
from tests.gpu import on_gpu

DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]
SHAPES = [(5, 3, 2, 2), (7,), (), (0, 4), (300, 80)]


def plain_distance(before: list[Tensor], after: list[Tensor]) -> float:
    changes = [(y - x).double().flatten() for x, y in zip(before, after, strict=True)]
    return torch.cat(changes).norm().item()


@pytest.fixture(params=["kernel", "torch", pytest.param("cuda", marks=on_gpu)])
def computed_by(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == "torch":
        monkeypatch.setattr(library, "instructions", lambda: None)
    return "cuda" if request.param == "cuda" else "cpu"


@pytest.fixture(params=[torch.contiguous_format, torch.channels_last], ids=["first", "last"])
def draw(request: pytest.FixtureRequest, computed_by: str) -> Callable[[torch.dtype], list[Tensor]]:
    generator = torch.Generator().manual_seed(0)

    def drawn(dtype: torch.dtype) -> list[Tensor]:
        tensors = [torch.randn(shape, generator=generator).to(dtype) for shape in SHAPES]
        tensors[0] = tensors[0].contiguous(memory_format=request.param)
        return [tensor.to(computed_by) for tensor in tensors]

    return drawn


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("curvature", DTYPES)
def test_the_step_has_the_bits_of_torch(
    draw: Callable[..., list[Tensor]], dtype: torch.dtype, curvature: torch.dtype
) -> None:
    p = [each.contiguous() for each in draw(dtype)]
    g, h = draw(dtype), [each.abs() for each in draw(curvature)]
    before = [each.clone() for each in p]
    moved, wanted = (step(p, g, h, 0.3, 0.7) for step in (preconditioned_step, plain_step))
    for own, plain in zip(moved, wanted, strict=True):
        assert torch.equal(own, plain)
        assert (own.dtype, own.stride()) == (plain.dtype, plain.stride())
    assert all(map(torch.equal, p, before))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_step_is_its_formula(draw: Callable[..., list[Tensor]], dtype: torch.dtype) -> None:
    p, g, h = draw(dtype), draw(dtype), [each.abs() for each in draw(dtype)]
    for own, x, y, z in zip(preconditioned_step(p, g, h, 0.3, 0.7), p, g, h, strict=True):
        wanted = x.double() - 0.3 * y.double() / (z.double() + 0.7)
        torch.testing.assert_close(own.double(), wanted, rtol=0, atol=4 * torch.finfo(dtype).eps)
    assert preconditioned_step([], [], [], 0.3, 0.7) == []


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_distance_is_that_of_all(draw: Callable[..., list[Tensor]], dtype: torch.dtype) -> None:
    x, y = draw(dtype), draw(dtype)
    assert passes.distance(x, y) == pytest.approx(plain_distance(x, y), rel=1e-12)
    assert passes.distance([torch.ones(2, 2)], [torch.ones(2, 2).T]) == 0


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("value", [torch.inf, -torch.inf, torch.nan])
def test_what_is_not_finite_is_found(
    draw: Callable[..., list[Tensor]], dtype: torch.dtype, value: float
) -> None:
    tensors = draw(dtype)
    assert passes.are_finite(tensors)
    tensors[0][4, 2, 1, 1] = value
    assert not passes.are_finite(tensors)
    assert not passes.distance(draw(dtype), tensors) < torch.inf


def test_tensors_of_several_types_are_looked_at_together(computed_by: str) -> None:
    tensors = [torch.zeros(3), torch.zeros(3, dtype=torch.float64)]
    tensors = [tensor.to(computed_by) for tensor in tensors]
    assert passes.are_finite(tensors)
    tensors[1][2] = torch.nan
    assert not passes.are_finite(tensors)
