"""A network of torchvision's is trained, killed and resumed as if nothing had happened."""

import signal
from collections.abc import Iterator
from pathlib import Path

import torch
from curvserve_client import Client, RemoteDiagGGNOptimizer, RemoteSession
from torch import Tensor

from tests.server.process import PATIENCE, Server, serving

MODEL = "torchvision:resnet18,size=32,classes=10"
STEPS, CHECKPOINT_AT, KILLED_AFTER, BATCH_SIZE = 10, 7, 8, 2


def batches() -> Iterator[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(3)
    for _ in range(STEPS):
        images = torch.randint(256, (BATCH_SIZE, 3, 32, 32), generator=generator, dtype=torch.uint8)
        yield images, torch.randint(10, (BATCH_SIZE,), generator=generator)


def train(session: RemoteSession, until: int) -> None:
    """Take the steps from the session's version to another, each with its own batch."""
    optimizer = RemoteDiagGGNOptimizer(session.parameters(), lr=0.01, damping=1.0)
    for images, labels in list(batches())[session.version : until]:
        optimizer.step_on(images, labels)
        if session.version == CHECKPOINT_AT:
            session.checkpoint("seventh")


def kill(server: Server) -> None:
    server.process.send_signal(signal.SIGKILL)
    assert server.process.wait(PATIENCE) == -signal.SIGKILL


def test_a_killed_training_ends_where_an_undisturbed_one_does(tmp_path: Path) -> None:
    kept = ("--model", MODEL, "--data-dir", str(tmp_path), "--snapshot-every", "5")
    with serving(*kept) as server:
        with Client(server.address) as client:
            undisturbed = client.create_session("resnet18")
            begun = undisturbed.pull()
            train(undisturbed, STEPS)
            expected = undisturbed.pull()
            half_way, _ = undisturbed.read_checkpoint("seventh")
            train(client.session("resnet18"), KILLED_AFTER)
        kill(server)
    with serving(*kept) as server, Client(server.address) as client:
        resumed = client.session("resnet18")
        assert resumed.version == KILLED_AFTER
        assert resumed.info().problems == ()
        train(resumed, STEPS)
        assert resumed.version == STEPS and same(resumed.pull(), expected)
        assert same(resumed.read_checkpoint("seventh")[0], half_way)
        again = client.create_session("resnet18", from_checkpoint="resnet18/seventh")
        assert again.version == CHECKPOINT_AT
    assert not any(torch.equal(begun[name], tensor) for name, tensor in expected.items())


def same(left: dict[str, Tensor], right: dict[str, Tensor]) -> bool:
    return left.keys() == right.keys() and all(torch.equal(left[n], right[n]) for n in left)
