"""A fresh session of the live server for each test."""

from collections.abc import Iterator

import pytest
import torch
from curvserve_client import Client, RemoteSession
from torch import Tensor, nn


@pytest.fixture(scope="session")
def client(server_url: str) -> Iterator[Client]:
    with Client(server_url) as client:
        yield client


@pytest.fixture
def session(client: Client) -> Iterator[RemoteSession]:
    session = client.create_session("mnist_cnn", seed=5)
    yield session
    client.delete_session(session.name)


@pytest.fixture
def twin(client: Client) -> Iterator[RemoteSession]:
    """Another session with the same seed."""
    session = client.create_session("mnist_cnn", seed=5)
    yield session
    client.delete_session(session.name)


@pytest.fixture
def net() -> nn.Sequential:
    """The served model, with weights of its own."""
    return nn.Sequential(
        nn.Conv2d(1, 20, 5),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(20, 50, 5),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(800, 500),
        nn.ReLU(),
        nn.Linear(500, 10),
    )


@pytest.fixture
def batches() -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(4, 16, 1, 28, 28, generator=generator)
    targets = torch.randint(10, (4, 16), generator=generator)
    return list(zip(inputs, targets, strict=True))
