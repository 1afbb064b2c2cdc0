"""What the clients of a crash test ask for: change by change, all of it drawn from a seed."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from curvserve_client.wire import MEDIA_TYPE
from torch import Generator, Tensor

from tests.crash.model import CLASSES, INPUTS, normalised
from tests.server.api import body

SAMPLES = 12


@dataclass(frozen=True)
class Call:
    """One request: what it asks for, and with what.

    Attributes:
        noun: `step`, `forward_backward`, `optim_step`, `parameters`.
        content: the body.
        media_type: the body's.
        query: the query.
    """

    noun: str
    content: bytes
    media_type: str = MEDIA_TYPE
    query: Mapping[str, str] = field(default_factory=dict)


Change = Sequence[Call]
"""The requests that make one version; the last of them makes it, the others prepare it."""


@dataclass(frozen=True)
class Workload:
    """All that one client does.

    Attributes:
        name: the session's name.
        model: the session's model.
        rule: the session's rule and options.
        seed: what everything is drawn from.
        draw: gives the change that leads from a version to the next.
    """

    name: str
    model: str
    rule: Mapping[str, Any]
    seed: int
    draw: Callable[[Generator, int], Change]

    def change(self, version: int) -> Change:
        """Return the change that leads from a version to the next; always the same."""
        generator = Generator().manual_seed(self.seed * 1_000_003 + version)
        return self.draw(generator, version)


def workloads(seed: int) -> list[Workload]:
    """Return the work of all clients.

    Between them they use every call that changes a session, and rules that remember tensors
    (momentum, mean curvature) and numbers (the damping that trials lead to, the count of steps);
    one model has buffers.
    """
    averaging = {"momentum": 0.9, "beta2": 0.9, "curvature_interval": 2}
    halving = {"name": "diag_ggn", "momentum": 0.5}
    return [
        Workload("fused", "tiny", {"name": "diag_ggn", **averaging}, seed, _fused),
        Workload("halves", "tiny", halving, seed + 1, _halves),
        Workload("loads", "normalised", {"name": "adam"}, seed + 2, _loads),
        Workload("trials", "tiny", {"name": "diag_ggn", "damping_interval": 2}, seed + 3, _fused),
    ]


def batch(generator: Generator) -> dict[str, Tensor]:
    """Return a batch that the models here take."""
    inputs = torch.randn(SAMPLES, INPUTS, generator=generator)
    return {
        "inputs": inputs,
        "targets": torch.randint(CLASSES, (SAMPLES,), generator=generator),
    }


def _fused(generator: Generator, version: int) -> Change:
    query = {"lr": "0.02"} if version % 3 == 0 else {}
    return [Call("step", _batch(generator), query=query)]


def _halves(generator: Generator, version: int) -> Change:
    said = {"options": {"lr": 0.03}, "scales": {"0.weight": 0.5}, "pending": 2}
    return [
        Call("forward_backward", _batch(generator)),
        Call("forward_backward", _batch(generator), query={"accumulate": "true"}),
        Call("optim_step", json.dumps(said).encode(), "application/json"),
    ]


def _loads(generator: Generator, version: int) -> Change:
    if version % 5 != 4:
        return [Call("step", _batch(generator))]
    return [Call("parameters", body(_parameters(generator)))]


def _batch(generator: Generator) -> bytes:
    return body(batch(generator))


def _parameters(generator: Generator) -> dict[str, Tensor]:
    drawn = normalised().build().named_parameters()
    return {name: torch.randn(p.shape, generator=generator) / 3 for name, p in drawn}
