"""The benchmark: who takes part, who is refused, what comes out; nothing here is about speed."""

import json
import sys

import pytest
import torch
from torch import Tensor, nn
from typer.testing import CliRunner, Result

from curvserve.bench import CONTESTANTS, Case, Contestant, Row, WrongNumbers, compare, lines
from curvserve.bench.checks import check
from curvserve.bench.contestants.by_engine import Evaluate
from curvserve.bench.timing import Timed, measure
from curvserve.cli import app
from curvserve.models import Model, SampleSpec

CPU = torch.device("cpu")
INSTALLED = {n: k for n, k in CONTESTANTS.items() if k.package in (None, "backpack", "curvlinops")}

pytestmark = [
    pytest.mark.filterwarnings("ignore:Full backward hook is firing"),  # BackPACK's
    pytest.mark.filterwarnings("ignore:.*torch.jit.script.*:FutureWarning"),  # curvlinops' import
    pytest.mark.filterwarnings("ignore:.*torch.jit.script.*:DeprecationWarning"),
]


def net() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 5), nn.Sigmoid(), nn.Linear(5, 3))


def data(count: int) -> tuple[Tensor, Tensor]:
    return torch.randn(count, 4, generator=torch.Generator().manual_seed(1)), torch.arange(
        count
    ) % 3


def recipe() -> Model:
    return Model(
        "small",
        net,
        nn.CrossEntropyLoss,
        SampleSpec((4,), torch.float32),
        SampleSpec((), torch.int64, minimum=0, maximum=2),
    )


OURS_AND_BACKPACK = {n: k for n, k in CONTESTANTS.items() if k.own or n == "BackPACK"}
CASE = Case("small", net, data, 6, mc_samples=2)
SINGLE = Case("small", net, data, 6)


@pytest.mark.parametrize("quantity", ["DiagGGNMC", "DiagGGNExact", "BatchGrad", "DiagHessian"])
def test_all_contestants_agree(quantity: str) -> None:
    checked = check(CASE, quantity, INSTALLED, CPU)
    assert {"gradient", "hooks", "evaluate", "BackPACK"} <= set(checked.off)
    held = [off for name, off in checked.off.items() if name != "BackPACK"]
    assert all(off is not None and off < 1e-12 for off in held)
    assert checked.refused["BackPACK, channels_last"].startswith("there is no convolution")


def test_frozen_parameters_are_left_out_by_everybody() -> None:
    def half() -> nn.Module:
        model = net()
        model[0].requires_grad_(False)
        return model

    for quantity in ("DiagGGNMC", "BatchGrad", "KFAC"):
        off = check(Case("half", half, data, 6), quantity, INSTALLED, CPU).off
        assert {"hooks", "evaluate", "BackPACK"} <= set(off)


def test_kronecker_factors_are_held_against_two_peers() -> None:
    off = check(SINGLE, "KFAC", INSTALLED, CPU).off
    assert off["curvlinops"] is not None and off["evaluate"] is not None


@pytest.mark.parametrize(("loss", "outputs"), [(nn.MSELoss, 3), (nn.BCEWithLogitsLoss, 1)])
@pytest.mark.parametrize("quantity", ["DiagGGNMC", "KFAC"])
def test_draws_of_other_losses_are_held_against_the_peers(
    loss: type[nn.Module], outputs: int, quantity: str
) -> None:
    def model() -> nn.Module:
        return nn.Sequential(nn.Linear(4, 5), nn.Sigmoid(), nn.Linear(5, outputs))

    def given(count: int) -> tuple[Tensor, Tensor]:
        inputs, labels = data(count)
        return inputs, nn.functional.one_hot(labels, 3)[:, :outputs].to(inputs.dtype)

    case = Case("other", model, given, 6, loss=loss, mc_samples=2)
    off = check(case, quantity, OURS_AND_BACKPACK, CPU).off
    assert all(off[name] is not None for name in ("hooks", "evaluate", "compiled"))


class Double(Evaluate):
    """Twice the right numbers."""

    name = "double"

    def found(self):
        return {f: {n: 2 * t for n, t in found.items()} for f, found in super().found().items()}


class Partial(Evaluate):
    """Less than all of it."""

    name = "partial"

    def found(self):
        return {f: {n: t[:1] for n, t in found.items()} for f, found in super().found().items()}


class Silent(Evaluate):
    """None of the quantity."""

    name = "silent"

    def found(self):
        return {"grad": super().found()["grad"]}


class Forgetful(Evaluate):
    """None of one parameter."""

    name = "forgetful"

    def found(self):
        return {f: dict(list(found.items())[1:]) for f, found in super().found().items()}


@pytest.mark.parametrize("kind", [Double, Partial, Silent, Forgetful])
def test_a_contestant_with_other_numbers_is_never_timed(kind: type[Contestant]) -> None:
    with pytest.raises(WrongNumbers, match=f"{kind.name}: DiagGGNMC of small"):
        compare(CASE, "DiagGGNMC", CPU, 2, kinds={kind.name: kind})


def test_a_peer_that_cannot_says_why() -> None:
    def normed() -> nn.Module:
        return nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4), nn.Linear(4, 3))

    row = compare(Case("normed", normed, data, 6), "DiagGGNMC", CPU, 2, kinds=INSTALLED)
    assert row.refused["BackPACK"] == "it has no rule for attention and layer norms"
    assert row.off["evaluate"] is not None  # against autograd, sample by sample
    assert row.over_fastest is not None and row.over_fastest[0] == "torch.func"


def test_what_the_engine_refuses_is_told_and_the_rest_timed() -> None:
    def mixed() -> nn.Module:
        return nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Linear(4, 3))

    row = compare(Case("mixed", mixed, data, 6), "DiagGGNMC", CPU, 2, kinds=INSTALLED)
    assert "MixedSamplesError" in row.refused["evaluate"]
    assert "gradient" in row.times and row.over("BackPACK") is None


class Noted:
    """What notes that it ran."""

    def __init__(self, name: str, log: list[str]) -> None:
        self.name, self.log = name, log

    def run(self) -> None:
        self.log.append(self.name)

    def drop(self) -> None:
        self.log.append("drop")


def test_contestants_take_turns_and_turn_round() -> None:
    log: list[str] = []
    times = measure({"a": Noted("a", log), "b": Noted("b", log)}, 3)
    order = "".join(name for name in log if name != "drop")
    assert order in ("abbaabbaab", "baabbaabba") and log.count("drop") == 10
    assert {name: timed.rounds for name, timed in times.items()} == {"a": 3, "b": 3}
    short = measure({"a": Noted("a", log), "b": Noted("b", log)}, 100, seconds=0)
    assert short["a"].rounds == 3


def test_preempted_passes_count_only_where_there_are_few_others() -> None:
    passes = [(1.0, False), (2.0, False), (3.0, False), (90.0, True), (90.0, True)]
    assert Timed.of(passes) == Timed(2.0, 1.5, 2.5, 5, 2)
    assert Timed.of(passes[1:]).median == pytest.approx(46.5)


def bench(*arguments: str) -> Result:
    return CliRunner().invoke(app, ["bench", *arguments])


def test_the_command_checks_and_times() -> None:
    threads = torch.get_num_threads()
    done = bench("--model", f"{__name__}:recipe", "--batch", "6", "--rounds", "2", "--threads", "1")
    assert done.exit_code == 0, done.output
    assert torch.get_num_threads() == threads
    assert "| small, 6   | DiagGGNMC |" in done.output


def test_its_figures_are_had_as_json_and_nothing_else_is_printed() -> None:
    done = bench(
        "--model", f"{__name__}:recipe", "--batch", "6", "--rounds", "2", "--threads", "1",
        "--quantity", "DiagGGNMC", "--quantity", "BatchGrad", "--json",
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    figures = json.loads(done.stdout)
    assert set(figures) == {"about", "rows"}
    for row in figures["rows"]:
        assert {"net", "batch", "quantity", "threads", "times", "off", "refused"} <= set(row)
        assert row["over_peer"] > 0 and row["off"]["evaluate"] < 1e-12
        assert {"median", "low", "high", "rounds", "preempted"} == set(row["times"]["BackPACK"])


def test_without_the_peers_it_times_ours_and_says_how_to_get_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for package in ("backpack", "opacus", "curvlinops"):
        monkeypatch.setitem(sys.modules, package, None)
    done = bench("--model", f"{__name__}:recipe", "--rounds", "2", "--threads", "1")
    assert done.exit_code == 0, done.output
    assert "pip install 'curvserve[bench]'" in done.output
    assert done.output.count("opacus") == 1
    head = next(line for line in done.output.splitlines() if line.startswith("| net"))
    assert "evaluate" in head and "BackPACK" not in head


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["--quantity", "Trace"], "no quantity 'Trace'; there are: DiagGGNMC"),
        (["--model", "resnet"], "no model is called 'resnet'"),
        (["--device", "abacus"], "no device 'abacus'"),
    ],
)
def test_a_wrong_argument_is_refused_in_one_line(arguments: list[str], reason: str) -> None:
    done = bench(*arguments)
    assert done.exit_code == 1 and reason in done.stderr and done.stderr.count("\n") == 1


def test_a_table_has_a_column_for_each_contestant_that_takes_part() -> None:
    rows: list[Row] = [compare(SINGLE, q, CPU, 2, kinds=INSTALLED) for q in ("BatchGrad", "KFAC")]
    head, _, first, second = [line for line in lines(rows) if line.startswith("|")]
    assert head.count("|") == first.count("|") == second.count("|")
    assert "torch.func" in head and "channels_last" not in head
    assert " – " in second
