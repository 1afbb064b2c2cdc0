"""The ways that trainers are shown, and the loop that each of them has to come up to."""

from collections.abc import Callable
from typing import Any

import torch
from curvserve_client import RemoteSession
from torch import Tensor, nn
from torch.nn.utils import clip_grad_norm_
from torch.optim import Optimizer
from torch.optim.lr_scheduler import StepLR
from torch.utils.data import DataLoader

from tests.client.ways import Loop, Mirrored, Way, Weights, batches

WAYS: dict[str, Callable[[RemoteSession], Way]] = {"loop": Loop, "mirror": Mirrored}
MAX_NORM = 0.5
ROUNDING = 1e-6  # a trainer's clipping may add one to the norm, or round it, in another way


class Losses(nn.Module):
    """A module whose result is the loss of a mirrored net, as that of `session.module()` is."""

    def __init__(self, way: Way) -> None:
        super().__init__()
        self.net = way.module()
        self._way = way

    def forward(self, inputs: Tensor, targets: Tensor) -> Tensor:
        return self._way.loss((inputs, targets))


def model_of(way: Way) -> nn.Module:
    """What a trainer is given for a model."""
    return way.module() if isinstance(way, Loop) else Losses(way)


def loader() -> DataLoader[Any]:
    """The batches, as a trainer wants them."""
    samples = [(x, y) for inputs, targets in batches() for x, y in zip(inputs, targets)]  # noqa: B905  # of equal length
    return DataLoader(samples, batch_size=len(batches()[0][1]))  # type: ignore[arg-type]  # a list is a data set


def scheduled(optimizer: Optimizer) -> StepLR:
    return StepLR(optimizer, step_size=2, gamma=0.5)


def plain_loop(
    way: Way, accumulated: int = 1, max_norm: float | None = None, epochs: int = 1
) -> Weights:
    """Train in a loop of one's own: accumulation, clipping, a scheduler."""
    optimizer = way.optimizer()
    scheduler = scheduled(optimizer)
    parameters = [parameter for _, parameter in way.named_parameters()]
    for number, batch in enumerate(batches() * epochs, 1):
        (way.loss(batch) / accumulated).backward()
        if number % accumulated:
            continue
        if max_norm is not None:
            clip_grad_norm_(parameters, max_norm)
        optimizer.step()
        optimizer.zero_grad()
        scheduler.step()
    return way.weights()


def check_same(found: Weights, expected: Weights, within: float) -> None:
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        if within:
            torch.testing.assert_close(found[name], tensor, rtol=within, atol=within * 0.1)
        else:
            assert torch.equal(found[name], tensor), name
