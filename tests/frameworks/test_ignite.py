"""Ignite's supervised trainer: accumulation, a scheduler."""

import pytest
from curvserve_client import RemoteSession
from ignite.engine import Events, create_supervised_trainer

from tests.client.ways import Way, Weights
from tests.frameworks.loops import WAYS, check_same, loader, model_of, plain_loop, scheduled


def trained(way: Way, accumulated: int) -> Weights:
    optimizer = way.optimizer()
    trainer = create_supervised_trainer(
        model_of(way),
        optimizer,
        loss_fn=lambda loss, _: loss,
        prepare_batch=lambda batch, **_: (batch, None),
        model_fn=lambda model, batch: model(*batch),
        gradient_accumulation_steps=accumulated,
    )
    scheduler = scheduled(optimizer)
    trainer.add_event_handler(
        Events.ITERATION_COMPLETED(every=accumulated), lambda: scheduler.step()
    )
    trainer.run(loader(), max_epochs=1)
    return way.weights()


@pytest.mark.parametrize("accumulated", [1, 2])
@pytest.mark.parametrize("way", WAYS)
def test_ignite_trains_to_the_bits_of_a_plain_loop(
    way: str, accumulated: int, session: RemoteSession, twin: RemoteSession
) -> None:
    found = trained(WAYS[way](session), accumulated)
    check_same(found, plain_loop(WAYS[way](twin), accumulated), within=0)
