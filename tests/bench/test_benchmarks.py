"""The repository's own benchmark: it ends with tables and figures, and times nothing unchecked."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.__main__ import PARTS, main
from benchmarks.growth import axes, exponent
from benchmarks.nets import CASES, mlp
from benchmarks.steps import WAYS, Fused, Halves, check_steps
from curvserve.bench import WrongNumbers
from curvserve.bench.contestants.by_engine import Evaluate
from tests.server.process import ROOT, serving

pytestmark = [
    pytest.mark.filterwarnings("ignore:Full backward hook is firing"),  # BackPACK's
    pytest.mark.filterwarnings("ignore:.*torch.jit.script.*"),  # curvlinops' import
]
TINY = ("--batch", "4", "--rounds", "2", "--threads", "1")


def test_the_entry_prints_a_table_and_writes_it_with_its_figures(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("benchmarks.__main__._draw", lambda folder: None)  # the bench extra's
    main(["passes", "--net", "mlp", "--quantity", "DiagGGNMC", *TINY, "--out", str(tmp_path)])
    text = (tmp_path / "passes.txt").read_text()
    assert text in capsys.readouterr().out and "| mlp, 4     | DiagGGNMC |" in text
    (row,) = json.loads((tmp_path / "passes.json").read_text())["rows"]
    assert {"evaluate", "hooks", "gradient", "BackPACK", "torch.func"} <= set(row["times"])
    assert row["off"]["evaluate"] < 1e-12 and row["off"]["BackPACK"] < 1e-12


def test_the_entry_ends_where_a_contestant_is_wrong(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = Evaluate.found
    monkeypatch.setattr(
        Evaluate,
        "found",
        lambda self: {f: {n: t + 1 for n, t in p.items()} for f, p in right(self).items()},
    )
    with pytest.raises(SystemExit, match="evaluate: DiagGGNMC of mlp, against BackPACK: grad of"):
        main(["passes", "--net", "mlp", *TINY, "--out", str(tmp_path)])
    assert not (tmp_path / "passes.json").exists()


def test_a_served_step_is_the_peers() -> None:
    class Longer(Fused):
        name = "longer"

        def prepare(self) -> None:
            super().prepare()
            self.optimizer.param_groups[0]["lr"] *= 1.001

    with serving("--model", "benchmarks.served:exact", "--log-level", "error") as server:
        off = check_steps(server.address)
        assert set(off) == {way.name for way in WAYS}
        assert all(value is None or value < 1e-12 for value in off.values())
        assert off[Halves.name] is not None
        with pytest.raises(WrongNumbers, match="longer, one step: step of .* is off by 1.0e-03"):
            check_steps(server.address, (Longer,))


PEAKS = """
import json, torch
from benchmarks.memory import peak
from benchmarks.nets import digits, mlp
from curvserve.bench import Case
case, cpu = Case("mlp", mlp, digits, 32), torch.device("cpu")
asked = [("BatchGrad", "evaluate"), ("DiagGGNMC", "evaluate"), ("KFAC", "torch.func")]
print(json.dumps([peak(case, quantity, name, cpu) for quantity, name in asked]))
"""


def test_the_peak_of_a_pass_holds_what_it_returns() -> None:
    own = 4 * sum(p.numel() for p in mlp().parameters()) / 1e6  # MB of a tensor like each parameter
    # in an interpreter of its own: what this one forks from has left memory behind
    done = subprocess.run([sys.executable, "-c", PEAKS], cwd=ROOT, capture_output=True, text=True)
    rows, diagonal, nothing = json.loads(done.stdout)
    assert 33 * own < rows < 66 * own and 0.5 * own < diagonal < 10 * own
    assert nothing is None


def test_an_exponent_is_the_slope_of_the_larger_half() -> None:
    assert exponent([1, 2, 4, 8, 16], [9, 9, 3 * 4**2, 3 * 8**2, 3 * 16**2]) == pytest.approx(2)
    assert exponent([10, 100], [5, 5]) == pytest.approx(0)


def test_every_axis_grows_and_every_net_is_what_its_name_says() -> None:
    found = list(axes())
    names = ["batch", "mc_samples", "classes", "width", "side", "parameters"]
    assert [axis.name for axis in found] == names
    assert all(
        sorted(axis.points, key=lambda point: point[0]) == list(axis.points) for axis in found
    )
    nets = {"mnist_cnn", "3c3d", "all_cnn_c", "resnet18", "resnet18_cifar", "mlp", "transformer"}
    assert {case.name for case in CASES} == nets
    parts = ["passes", "steps", "memory", "growth", "training", "page", "scaling"]
    assert list(PARTS) == parts


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["nothing"], "no part is called nothing; there are: passes, steps"),
        (["passes", "--device", "cuda:99"], "no device 'cuda:99'"),
        (["passes", "--net", "nothing"], "invalid choice: 'nothing'"),
    ],
)
def test_a_wrong_argument_is_refused_in_one_line(
    arguments: list[str], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        main(arguments)
    assert told in capsys.readouterr().err.splitlines()[-1]
