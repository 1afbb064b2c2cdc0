"""The second backward pass, left out for samples of which the first brings the same."""

from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from curvserve.engine import Evaluator, draws, evaluate, share
from curvserve.engine.branches import cut
from curvserve.engine.programs import ALL, written_down
from curvserve.engine.share import misses

CLASSES = 4
Net = Callable[[], nn.Module]


def convolutional() -> nn.Module:
    layers = [nn.Conv2d(1, 3, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten()]
    return nn.Sequential(*layers, nn.Linear(27, 8), nn.Tanh(), nn.Linear(8, CLASSES))


class Twice(nn.Module):
    """One layer used twice, and a parameter that no layer holds, which is replayed."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(64, 6)
        self.inner = nn.Linear(6, 6)
        self.last = nn.Linear(6, CLASSES)
        self.slope = nn.Parameter(torch.full((6,), 0.5))

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.inner(self.inner(self.first(x.flatten(1))).tanh())
        return self.last(torch.where(hidden > 0, hidden, hidden * self.slope))


def with_unused() -> nn.Module:
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, CLASSES))
    model.register_parameter("unused", nn.Parameter(torch.ones(2)))
    return model


NETS: list[Net] = [convolutional, Twice, with_unused]


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)  # what is learned decides which ways are taken


@pytest.fixture(autouse=True)
def _worth(monkeypatch: pytest.MonkeyPatch) -> None:
    """For nets as small as these it is not worth to have few samples go alone."""
    monkeypatch.setattr(share, "_WORTH", 0)


def batch(samples: int = 32) -> tuple[Tensor, Tensor]:
    return torch.randn(samples, 1, 8, 8), torch.randint(CLASSES, (samples,))


def trained(net: Net, inputs: Tensor, labels: Tensor, steps: int = 200) -> nn.Module:
    model = net()
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.dim() > 0], 0.02)
    for _ in range(steps):
        optimizer.zero_grad()
        F.cross_entropy(model(inputs), labels).backward()
        optimizer.step()
    return model


def drawn(model: nn.Module, inputs: Tensor, seed: int) -> Tensor:
    probabilities = model(inputs).softmax(1).detach()
    return draws.SeededDraws(seed, len(inputs)).classes(probabilities, 1)[0]


def reference(model: nn.Module, inputs: Tensor, classes: Tensor, scale: float) -> dict[str, Tensor]:
    """Every sample's gradient at its drawn class, by itself, squared and added up."""
    named = dict(model.named_parameters())
    total = {name: torch.zeros_like(p) for name, p in named.items()}
    for x, y in zip(inputs.split(1), classes.split(1), strict=True):
        loss = F.cross_entropy(model(x), y)
        grads = torch.autograd.grad(loss, list(named.values()), allow_unused=True)
        for name, g in zip(named, grads, strict=True):
            if g is not None:
                total[name] += g.square() * scale
    return total


def largest(own: dict[str, Tensor], wanted: dict[str, Tensor]) -> float:
    assert own.keys() == wanted.keys()
    pairs = [(own[name], wanted[name]) for name in own]
    return max(float((a - b).abs().max() / (b.abs().max() + 1e-300)) for a, b in pairs)


class Ways(list[int | None]):
    """How many samples went back alone, of each pass; None where all did."""


@pytest.fixture
def ways(monkeypatch: pytest.MonkeyPatch) -> Ways:
    found = Ways()

    def spied(weights: Tensor, *, alone: bool) -> Tensor | None:
        chosen = misses(weights, alone=alone)
        found.append(None if chosen is None else len(chosen))
        return chosen

    monkeypatch.setattr(share, "misses", spied)
    return found


@pytest.mark.parametrize("net", NETS)
@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_it_is_the_diagonal_of_the_drawn_classes(net: Net, reduction: str, ways: Ways) -> None:
    torch.set_default_dtype(torch.float64)
    try:
        inputs, labels = batch()
        model = trained(net, inputs, labels)
        labels[:3] = (labels[:3] + 1) % CLASSES  # which the model does not expect
        for seed in range(8):
            found = evaluate(model, nn.CrossEntropyLoss(reduction=reduction), inputs, labels,
                             ["diag_ggn_mc", "grad", "grad_batch"], seed=seed)  # fmt: skip
            scale = 1 / len(inputs) if reduction == "mean" else 1.0
            wanted = reference(model, inputs, drawn(model, inputs, seed), scale)
            assert largest(found.quantities["diag_ggn_mc"], wanted) < 1e-12
            sums = {name: rows.sum(0) for name, rows in found.quantities["grad_batch"].items()}
            assert largest(sums, found.quantities["grad"]) < 1e-12
    finally:
        torch.set_default_dtype(torch.float32)
    assert 4 in ways or 8 in ways


def test_as_many_go_back_as_were_drawn_otherwise(ways: Ways) -> None:
    inputs, labels = batch()
    model = trained(convolutional, inputs, labels, 400)
    for seed in range(4):
        evaluate(model, nn.CrossEntropyLoss(), inputs, labels, seed=seed)
        assert int((drawn(model, inputs, seed) != labels).sum()) <= 2
    assert set(ways) <= {0, 2} and 0 in ways
    del ways[:]
    evaluate(convolutional(), nn.CrossEntropyLoss(), inputs, labels, seed=0)
    assert ways == [None]


def test_where_it_is_not_worth_it_none_or_all_go_back(
    ways: Ways, monkeypatch: pytest.MonkeyPatch
) -> None:
    inputs, labels = batch()
    model, loss = trained(convolutional, inputs, labels, 400), nn.CrossEntropyLoss()
    multiplications = len(inputs) * (64 * 27 + 27 * 8 + 8 * CLASSES)
    asked = ["grad", "diag_ggn_mc"]
    for least, expected in [(multiplications, {0, 2}), (multiplications + 1, {0, None})]:
        monkeypatch.setattr(share, "_WORTH", least)
        evaluator = Evaluator(model, loss, eager_calls=1)
        for seed in range(12):
            targets = labels.clone()
            targets[: seed % 2] = (labels[: seed % 2] + 1) % CLASSES
            own = evaluator(inputs, targets, asked, seed=seed).quantities["diag_ggn_mc"]
            wanted = reference(model, inputs, drawn(model, inputs, seed), 1 / len(inputs))
            assert largest(own, wanted) < 1e-3
        assert set(ways) == expected and not evaluator.refusals()
        del ways[:]


@pytest.mark.parametrize(
    ("net", "seeded"),
    [(convolutional, True), (convolutional, False), (Twice, True), (with_unused, True)],
)
def test_a_program_has_the_bits_of_the_eager_pass_on_every_way(net: Net, seeded: bool) -> None:
    inputs, labels = batch()
    model, loss = trained(net, inputs, labels), nn.CrossEntropyLoss()
    evaluator = Evaluator(model, loss, eager_calls=1)
    asked = ["grad", "diag_ggn_mc"]
    for number in range(24):
        targets = labels.clone()
        targets[: number % 12] = (labels[: number % 12] + 1) % CLASSES
        seed = number if seeded else None
        torch.manual_seed(number)
        own = evaluator(inputs, targets, asked, seed=seed)
        after = torch.rand(1)
        torch.manual_seed(number)
        wanted = evaluate(model, loss, inputs, targets, asked, seed=seed)
        assert torch.equal(after, torch.rand(1))
        for name in asked:
            for key, value in wanted.quantities[name].items():
                assert torch.equal(own.quantities[name][key], value)
    assert not evaluator.refusals()
    (program,) = evaluator._programs.values()
    assert {ALL, 4, 8} <= program.verified


class Noisy(nn.Module):
    """Another noise each time."""

    def forward(self, x: Tensor) -> Tensor:
        return x + 0.01 * torch.randn_like(x)


class Counting(nn.Module):
    """Something that changes a buffer each time."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return x * 1.0


@pytest.mark.parametrize("layer", [Noisy, Counting, lambda: nn.Dropout(0.01)])
def test_a_pass_that_would_differ_is_not_shared(layer: Net, ways: Ways) -> None:
    inputs, labels = batch()
    model = nn.Sequential(layer(), trained(convolutional, inputs, labels))
    evaluate(model, nn.CrossEntropyLoss(), inputs, labels, seed=0)
    assert not ways


class Fickle(nn.Module):
    """A model that remembers, in Python, how many it was called with."""

    def forward(self, x: Tensor) -> Tensor:
        return x if len(x) == 32 else -x


def test_a_model_that_treats_few_samples_in_another_way_is_not_shared(ways: Ways) -> None:
    inputs, labels = batch()
    whole = trained(convolutional, inputs, labels)
    labels[0] = (labels[0] + 1) % CLASSES
    model, loss = nn.Sequential(whole, Fickle()), nn.CrossEntropyLoss()
    evaluator = Evaluator(model, loss, eager_calls=1)
    for seed in range(4):
        own = evaluator(inputs, labels, ["diag_ggn_mc"], seed=seed).quantities["diag_ggn_mc"]
        wanted = reference(whole, inputs, drawn(whole, inputs, seed), 1 / 32)
        assert largest({key[2:]: value for key, value in own.items()}, wanted) < 1e-4
    assert ways and evaluator.compiled() == 0
    assert "had other outputs than in their batch" in evaluator.refusals()[0]


@pytest.mark.parametrize(
    "loss",
    [
        nn.CrossEntropyLoss(label_smoothing=0.1),
        nn.CrossEntropyLoss(weight=torch.tensor([1.0, 2.0, 1.0, 1.0])),
    ],
)
def test_a_gradient_that_is_no_multiple_of_the_column_is_not_used(
    loss: nn.Module, ways: Ways
) -> None:
    inputs, labels = batch()
    model = trained(convolutional, inputs, labels)
    evaluate(model, loss, inputs, labels, seed=0)
    evaluate(model, nn.CrossEntropyLoss(), inputs, F.one_hot(labels, CLASSES).float(), seed=0)
    assert not ways


def test_a_label_that_is_ignored_goes_back_with_nothing(ways: Ways) -> None:
    inputs, labels = batch()
    model = trained(convolutional, inputs, labels, 400).double()
    kept, labels[1] = torch.arange(32) != 1, -100
    own = evaluate(model, nn.CrossEntropyLoss(), inputs.double(), labels, seed=3).quantities
    classes = drawn(model, inputs.double(), 3)[kept]
    wanted = reference(model, inputs.double()[kept], classes, 1 / 31)
    assert largest(own["diag_ggn_mc"], wanted) < 1e-12
    assert ways == [2]


@given(st.integers(16, 200), st.data())
def test_the_others_are_all_there_once_in_one_of_few_lengths(
    total: int, data: st.DataObject
) -> None:
    wanted = data.draw(st.sets(st.integers(0, total - 1)))
    weights = torch.ones(total)
    weights[list(wanted)] = 0
    chosen = misses(weights, alone=True)
    if chosen is None:
        assert len(wanted) > total / 4
        return
    assert [int(i) for i in chosen if i >= 0] == sorted(wanted)
    assert len(chosen) in {0, *(-(-total // part) for part in (16, 8, 4))}


def test_programs_that_begin_otherwise_are_not_cut() -> None:
    x = torch.randn(3)

    def first(x: Tensor) -> list[Tensor]:
        seen = x.exp()
        return [seen + 1, seen]

    def second(x: Tensor) -> list[Tensor]:
        seen = x.exp()
        return [seen * x, seen]

    def other(x: Tensor) -> list[Tensor]:
        seen = x.sin()
        return [seen, seen]

    programs = [written_down(f, x) for f in (first, second)]
    pieces = cut(programs, 1)
    for way, function in enumerate((first, second)):
        (seen,), values = pieces.begin(x)
        assert torch.equal(seen, x.exp())
        assert torch.equal(pieces.go_on(way, values)[0], function(x)[0])
        assert values == []
    with pytest.raises(ValueError, match="do not begin alike"):
        cut([programs[0], written_down(other, x)], 1)
