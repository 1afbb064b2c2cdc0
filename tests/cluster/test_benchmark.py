"""The benchmark of workers: it checks their steps first, and counts what each has."""

import asyncio
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
from curvserve_client.rules import DiagGGN

from benchmarks.options import Options
from benchmarks.scaling import INLINE, PIECES, check_steps, held, nets, private
from curvserve.bench import WrongNumbers
from curvserve.cluster.executor import RayExecutor
from curvserve.models.mlp import network

MNIST_CNN = next(net for net in nets() if net.name == "mnist_cnn")


@pytest.fixture
def runner(cluster: None) -> Iterator[asyncio.Runner]:
    with asyncio.Runner() as found:
        yield found


@pytest.mark.campaign
def test_a_table_of_steps(runner: asyncio.Runner, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("benchmarks.scaling.WORKERS", (1, 1000))
    measure, told = PIECES["steps"]
    figures = runner.run(measure(Options(rounds=3, nets=("mnist_cnn",), batch=4)))
    alone, one = figures["rows"]
    assert (alone["workers"], one["workers"]) == (INLINE, "1")
    assert alone["off"] is None and one["off"] < 1e-12
    assert one["speed_up"] == alone["ms"] / one["ms"]
    assert one["beside_inline"] == one["ms"] - alone["ms"]
    parameters = sum(p.numel() for p in MNIST_CNN.model.build().parameters())
    assert one["all_reduce_mb"] == pytest.approx(4 * 2 * parameters / 1e6)  # gradient and diagonal
    assert told(figures)[-1].endswith("cores: 1000 workers")


@pytest.mark.campaign
def test_workers_that_step_otherwise_end_it(
    runner: asyncio.Runner, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = RayExecutor.step

    async def longer(self: RayExecutor, state: Any, batch: Any, rule: DiagGGN) -> Any:
        return await right(self, state, batch, replace(rule, lr=1.001 * rule.lr))

    monkeypatch.setattr(RayExecutor, "step", longer)
    with pytest.raises(WrongNumbers, match="mnist_cnn, 1 workers: steps of .* is off by .*e-0[34]"):
        runner.run(check_steps(MNIST_CNN, [1]))


@pytest.mark.campaign
def test_slices_are_shares_of_what_a_rule_remembers(runner: asyncio.Runner) -> None:
    width = 64
    own = sum(p.nbytes for p in network(width).parameters()) / 1e6
    found = runner.run(held(2, True, width))
    assert found["parameters"] == pytest.approx(own)
    assert found["rule"] == pytest.approx([own, own], rel=0.01)  # two moments, halves of both
    pairs = zip(found["before"], found["after"], strict=True)
    assert all(0 < before < after for before, after in pairs)


def test_memory_of_its_own_is_counted() -> None:
    def of_one_with(size: int) -> float:
        program = f"held = b'x' * {size}; print(flush=True); input()"
        with subprocess.Popen(
            [sys.executable, "-S", "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        ) as process:
            assert process.stdout is not None
            process.stdout.readline()
            found = private(process.pid)
            process.communicate(b"\n")
        return found

    assert of_one_with(50_000_000) - of_one_with(0) == pytest.approx(50, abs=2)
