"""The kernel that sums squared rows, with every set of instructions that this machine has."""

import importlib
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from curvserve.engine import evaluate, native
from curvserve.engine.native import library
from tests.engine.compiled_kernels import NAMES, needs_compiler
from tests.engine.zoo import make
from tests.server.process import ROOT

pytestmark = needs_compiler


def test_where_there_is_a_compiler_there_is_the_kernel() -> None:
    assert native.instructions() is not None, "not built: pip install --editable . -v says why"


@pytest.fixture(params=NAMES)
def instructions(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setattr(library, "instructions", lambda: request.param)
    return str(request.param)


@pytest.fixture
def threads() -> Any:
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


def plain(a: Tensor, columns: list[Tensor], axes: int) -> Tensor:
    """The same in float64, sample by sample."""
    a = a.double().flatten(1, axes).flatten(2)
    rows = [s_n.T @ a_n for s in columns for s_n, a_n in zip(s.double(), a, strict=True)]
    return torch.stack(rows).square().sum(0)


def drawn(generator: torch.Generator, dtype: torch.dtype, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)


@pytest.mark.parametrize("name", NAMES)
@settings(deadline=None, max_examples=60)
@given(st.data())
def test_any_sizes_and_strides(name: str, data: Any) -> None:
    draw, seed = data.draw, data.draw(st.integers(0, 1000))
    generator = torch.Generator().manual_seed(seed)
    samples, outputs = draw(st.integers(1, 5)), draw(st.integers(1, 19))
    height, width = draw(st.integers(1, 18)), draw(st.integers(1, 18))
    taps, step = draw(st.integers(1, min(height, width))), draw(st.integers(1, 2))
    channels = draw(st.integers(1, 60))
    dtype = draw(st.sampled_from([torch.float32, torch.float64]))
    image = drawn(generator, dtype, samples, height, width, channels)
    if draw(st.booleans()):  # channels first in memory
        image = image.movedim(-1, 1).contiguous().movedim(1, -1)
    view = image.unfold(1, taps, step).unfold(2, taps, step).movedim(3, -1)
    length = view.shape[1] * view.shape[2]
    columns = [
        drawn(generator, dtype, samples, length, outputs) for _ in range(draw(st.integers(1, 3)))
    ]
    if draw(st.booleans()):  # not every column as it is wanted
        columns[-1] = columns[-1].mT.contiguous().mT
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(library, "instructions", lambda: name)
        found = native.square_sum(view, columns, 2)
    assert found.dtype == dtype and found.shape == (outputs, taps * taps * channels)
    expected = plain(view, columns, 2)
    off = (found.double() - expected).norm() / expected.norm()
    assert off < (1e-6 if dtype == torch.float32 else 1e-14)


@pytest.mark.parametrize("channels", [1, 3, 40])
def test_the_bits_do_not_depend_on_the_threads(
    channels: int, instructions: str, threads: Any
) -> None:
    generator = torch.Generator().manual_seed(0)
    a = drawn(generator, torch.float32, 23, 200, channels)
    columns = [drawn(generator, torch.float32, 23, 200, 37) for _ in range(2)]
    found = []
    for count in (1, 2, 3, 5):
        threads(count)
        found.append(native.square_sum(a, columns, 1))
    assert all(torch.equal(found[0], other) for other in found[1:])


def test_what_is_not_finite_stays_where_it_is(instructions: str) -> None:
    a, s = torch.ones(2, 3, 5), torch.ones(2, 3, 4)
    a[1, 1, 2], s[0, 2, 3] = torch.nan, torch.inf
    found = native.square_sum(a, [s], 1)
    assert found[:, 2].isnan().all() and found[3, [0, 1, 3, 4]].isinf().all()
    assert torch.equal(found[:3, [0, 1, 3, 4]], torch.full((3, 4), 18.0))


@pytest.mark.parametrize("shape", [(0, 3, 5), (2, 0, 5), (2, 3, 0)])
def test_nothing_adds_up_to_zero(shape: tuple[int, int, int]) -> None:
    found = native.square_sum(torch.ones(shape), [torch.ones(*shape[:2], 4)], 1)
    assert torch.equal(found, torch.zeros(4, shape[2]))


@pytest.mark.parametrize(
    "shape, dtype",
    [
        ((2, 3, 4), torch.float64),
        ((2, 2, 4), torch.float32),
        ((1, 3, 4), torch.float32),
    ],
)
def test_what_does_not_fit_is_refused(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    with pytest.raises(ValueError, match="and cotangents"):
        native.square_sum(torch.ones(2, 3, 5), [torch.ones(shape, dtype=dtype)], 1)


def test_another_default_device_is_not_asked() -> None:
    a, s = torch.ones(2, 3, 5), torch.ones(2, 3, 4)
    with torch.device("meta"):
        found = native.square_sum(a, [s], 1)
    assert torch.equal(found, torch.full((4, 5), 18.0))


@pytest.mark.parametrize(
    "name", ["seed_cnn", "convolution_options", "language_model", "segmentation", "recurrent"]
)
def test_nets_have_the_numbers_that_torch_gives(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    case = make(name)
    fields = ["diag_ggn_mc", "diag_ggn_exact", "sum_grad_squared"]

    def found() -> dict[str, Any]:
        return evaluate(case.model, case.loss, case.inputs, case.targets, fields, seed=3).quantities

    by_tiles = found()
    monkeypatch.setattr(library, "instructions", lambda: None)
    for field, expected in found().items():
        for parameter, tensor in expected.items():
            torch.testing.assert_close(by_tiles[field][parameter], tensor, rtol=1e-10, atol=1e-14)


@pytest.mark.parametrize("kind, axes", [(nn.Conv1d, 1), (nn.Conv2d, 2), (nn.Conv3d, 3)])
@pytest.mark.parametrize("mode", ["zeros", "circular", "reflect"])
def test_convolutions_of_every_kind(kind: Any, axes: int, mode: str) -> None:
    torch.manual_seed(0)
    layer = kind(3, 5, 3, padding=1, stride=2, padding_mode=mode).double()
    x = torch.randn(4, 3, *[5] * axes).double()
    y = torch.randn_like(layer(x).flatten(1))
    found = evaluate(
        nn.Sequential(layer, nn.Flatten()), nn.MSELoss(reduction="sum"), x, y, ["diag_ggn_exact"]
    ).quantities["diag_ggn_exact"]["0.weight"]
    expected = torch.zeros_like(layer.weight)
    for n in range(len(x)):
        for output in layer(x[n : n + 1]).flatten():
            (row,) = torch.autograd.grad(output, layer.weight, retain_graph=True)
            expected += 2 * row.square()
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


def test_what_is_compiled_is_a_module_that_may_be_imported() -> None:
    importlib.import_module("curvserve.engine.native._kernels")


def test_without_a_compiler_the_package_is_installed_and_torch_computes(tmp_path: Path) -> None:
    places = f"--build-lib={tmp_path / 'lib'}", f"--build-temp={tmp_path / 'temp'}"
    command = [sys.executable, "setup.py", "--quiet", "build_ext", *places]
    environment = {**os.environ, "CC": "/nowhere/cc"}
    run = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert not list(tmp_path.rglob("*.so"))


@pytest.mark.parametrize(
    ("name", "level"),
    [("", 0), ("DEFAULT", 0), ("SVE256", 0), ("AVX2", 1), ("AVX512", 2), ("AVX512_VNNI", 2)],
)
def test_torchs_name_decides_over_the_instructions(name: str, level: int) -> None:
    assert library.level(name) == level
