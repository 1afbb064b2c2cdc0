"""Small models for the tests of sessions, and states and batches of them."""

from collections.abc import Callable

import torch
from curvserve_client.rules import DiagGGN, Rule
from torch import Tensor, nn

from curvserve.models import Model, SampleSpec
from curvserve.models.metrics import accuracy
from curvserve.sessions import SessionState
from curvserve.sessions.replica import Replica, initial_tensors

CPU = torch.device("cpu")


def classifier(name: str, middle: Callable[[], nn.Module]) -> Model:
    """Return a model of four inputs and three classes with a layer in its middle."""

    def build() -> nn.Sequential:
        return nn.Sequential(nn.Linear(4, 5), middle(), nn.Linear(5, 3))

    return Model(
        name=name,
        build=build,
        loss=nn.CrossEntropyLoss,
        inputs=SampleSpec(shape=(4,), dtype=torch.float32),
        targets=SampleSpec(shape=(), dtype=torch.int64, minimum=0, maximum=2),
        metrics={"accuracy": accuracy},
        max_batch=64,
    )


PLAIN = classifier("plain", nn.ReLU)
NORMALISED = classifier("normalised", lambda: nn.BatchNorm1d(5))
DROPPED = classifier("dropped", lambda: nn.Dropout(0.5))


def batch(samples: int = 6, scale: float = 1.0) -> dict[str, Tensor]:
    """Return a batch that every model here takes."""
    generator = torch.Generator().manual_seed(1)
    inputs = torch.randn(samples, 4, generator=generator) * scale
    return {"inputs": inputs, "targets": torch.arange(samples) % 3}


def begin(model: Model, rule: Rule | None = None, seed: int = 0) -> tuple[Replica, SessionState]:
    """Return a replica of a model and its first state."""
    parameters, buffers = initial_tensors(model, seed)
    rule = rule or DiagGGN()
    state = SessionState(model.name, seed, rule, parameters, buffers, rule.start(parameters))
    return Replica.of(model, CPU), state


def copies(state: SessionState) -> dict[str, Tensor]:
    """Return copies of all tensors of a state."""
    tensors = {**state.parameters, **state.buffers}
    return {name: tensor.clone() for name, tensor in tensors.items()}


def same(state: SessionState, before: dict[str, Tensor]) -> bool:
    """Tell whether a state's tensors are still what they were."""
    tensors = {**state.parameters, **state.buffers}
    return all(torch.equal(tensors[name], before[name]) for name in before)
