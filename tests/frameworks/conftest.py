"""What every trainer is held against: plain loops, and two sessions of one seed."""

import os
from collections.abc import Iterator

import pytest
from curvserve_client import Client, RemoteSession

from tests.client.ways import SEED

os.environ["HF_HUB_OFFLINE"] = "1"  # read when transformers and accelerate are imported


@pytest.fixture(scope="session")
def client(server_url: str) -> Iterator[Client]:
    with Client(server_url) as client:
        yield client


@pytest.fixture
def session(client: Client) -> Iterator[RemoteSession]:
    session = client.create_session("mnist_cnn", seed=SEED)
    yield session
    client.delete_session(session.name)


@pytest.fixture
def twin(client: Client) -> Iterator[RemoteSession]:
    """Another session with the same seed, for the plain loop."""
    session = client.create_session("mnist_cnn", seed=SEED)
    yield session
    client.delete_session(session.name)
