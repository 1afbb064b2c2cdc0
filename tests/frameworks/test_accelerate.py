"""Accelerate: prepare, backward, clipping and accumulation."""

from collections.abc import Iterator

import pytest
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState
from curvserve_client import RemoteSession

from tests.client.ways import Way, Weights
from tests.frameworks.loops import (
    MAX_NORM,
    ROUNDING,
    WAYS,
    check_same,
    loader,
    model_of,
    plain_loop,
    scheduled,
)


@pytest.fixture(autouse=True)
def fresh_state() -> Iterator[None]:
    """Accelerate keeps its settings in the process."""
    yield
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()


def trained(way: Way, accumulated: int, max_norm: float | None) -> Weights:
    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=accumulated)
    raw = way.optimizer()
    model, optimizer, data, scheduler = accelerator.prepare(
        model_of(way), raw, loader(), scheduled(raw)
    )
    for inputs, targets in data:
        with accelerator.accumulate(model):
            accelerator.backward(model(inputs, targets))
            if accelerator.sync_gradients and max_norm is not None:
                accelerator.clip_grad_norm_(model.parameters(), max_norm)
            optimizer.step()
            scheduler.step()
            optimizer.zero_grad()
    return way.weights()


@pytest.mark.parametrize(("accumulated", "max_norm"), [(1, None), (2, MAX_NORM)])
@pytest.mark.parametrize("way", WAYS)
def test_accelerate_trains_to_the_parameters_of_a_plain_loop(
    way: str, accumulated: int, max_norm: float | None, session: RemoteSession, twin: RemoteSession
) -> None:
    found = trained(WAYS[way](session), accumulated, max_norm)
    expected = plain_loop(WAYS[way](twin), accumulated, max_norm)
    check_same(found, expected, within=ROUNDING if max_norm else 0)
