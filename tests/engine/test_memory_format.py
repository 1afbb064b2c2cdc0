"""Images are handed over with their channels last, to models that take them so."""

import copy

import pytest
import torch
from torch import Tensor, nn

from curvserve.engine import backpack, channels_last, evaluate, extend
from curvserve.engine.extensions import DiagGGNExact


class Seeing(nn.Module):
    """Notes the strides that it is called with."""

    def __init__(self, *layers: nn.Module) -> None:
        super().__init__()
        self.layers = nn.Sequential(*layers)
        self.seen: list[tuple[int, ...]] = []

    def forward(self, x: Tensor) -> Tensor:
        self.seen.append(x.stride())
        return self.layers(x)


class Viewing(Seeing):
    """Takes a view of its maps, which there is none of with the channels last."""

    def forward(self, x: Tensor) -> Tensor:
        self.seen.append(x.stride())
        maps: Tensor = self.layers(x)
        return maps.view(len(maps), -1)[:, :3]


def run(model: nn.Module, x: Tensor) -> dict[str, Tensor]:
    y = torch.arange(len(x)) % 3
    found = evaluate(model, nn.CrossEntropyLoss(), x, y, ["grad", "diag_ggn_exact"])
    return {f"{q}.{n}": t for q, named in found.quantities.items() for n, t in named.items()}


def convolving(channels: int) -> nn.Module:
    return Seeing(
        nn.Conv2d(channels, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(),
        nn.Linear(16, 3),
    ).double().eval()  # fmt: skip


@pytest.mark.parametrize("channels", [1, 2])
def test_the_strides_say_so_even_of_one_channel(channels: int) -> None:
    x = torch.randn(5, channels, 6, 7)
    last = channels_last(x)
    assert torch.equal(last, x)
    assert last.stride() == (channels * 42, 1, 7 * channels, channels)
    assert nn.Conv2d(channels, 4, 3)(last).is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("channels", [1, 2])
def test_the_numbers_are_those_of_the_plain_format(channels: int) -> None:
    x = torch.randn(5, channels, 6, 6).double()
    model = convolving(channels)
    plain = copy.deepcopy(model)
    found = run(model, x)
    expected = run(_Blind(plain), x)
    assert model.seen == [channels_last(x).stride()]
    assert plain.seen == [x.stride()]
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name.replace("inner.", "")], tensor)


class _Blind(nn.Module):
    """Hides that its model is given images."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x.contiguous(memory_format=torch.contiguous_format).clone(
            memory_format=torch.contiguous_format
        ))  # fmt: skip


def test_a_model_that_takes_a_view_is_run_as_it_is_and_nothing_has_happened_twice() -> None:
    torch.manual_seed(0)
    layers = (nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4, momentum=None), nn.Dropout2d(0.5))
    model = Viewing(*layers).double()
    x = torch.randn(5, 2, 6, 6).double()
    with pytest.raises(RuntimeError, match="view"):
        model.eval()(channels_last(x))
    model.seen.clear()
    model.layers[1].reset_running_stats()
    model.train()
    model.layers[1].eval()
    numbers = torch.get_rng_state()
    first = evaluate(model, nn.CrossEntropyLoss(), x, torch.arange(5) % 3, ["grad"])
    after = torch.get_rng_state()
    assert model.seen == [channels_last(x).stride(), x.stride()]
    torch.set_rng_state(numbers)
    second = evaluate(model, nn.CrossEntropyLoss(), x, torch.arange(5) % 3, ["grad"])
    assert model.seen[2:] == [x.stride()]
    assert torch.equal(first.loss, second.loss)
    assert torch.equal(torch.get_rng_state(), after)


@pytest.mark.parametrize(
    "model, x",
    [
        (Seeing(nn.Flatten(), nn.Linear(72, 3)), torch.randn(5, 2, 6, 6)),
        (Seeing(nn.Conv1d(2, 3, 6), nn.Flatten()), torch.randn(5, 2, 6)),
    ],
    ids=["no convolution", "no image"],
)
def test_what_does_not_gain_is_left_alone(model: Seeing, x: Tensor) -> None:
    run(model, x)
    assert model.seen == [x.stride()]


def test_the_curvature_of_a_model_that_takes_a_view() -> None:
    model = Viewing(nn.Conv2d(2, 4, 3)).double()
    x = torch.randn(5, 2, 6, 6).double()
    first, second = run(model, x), run(model, x)
    assert model.seen == [channels_last(x).stride(), x.stride(), x.stride()]
    plain = Seeing(model.layers[0], nn.Flatten()).double()
    y = torch.arange(5) % 3
    loss = extend(nn.CrossEntropyLoss())
    extend(plain)
    with backpack(DiagGGNExact()):
        loss(plain(x)[:, :3], y).backward()
    for name, parameter in plain.named_parameters():
        assert torch.equal(first[f"diag_ggn_exact.{name}"], second[f"diag_ggn_exact.{name}"])
        torch.testing.assert_close(
            first[f"diag_ggn_exact.{name}"],
            parameter.diag_ggn_exact,  # type: ignore[attr-defined]  # an extension puts it there
        )
