"""What people put around an optimizer, over two workers: the drop-in matrix."""

from collections.abc import Iterator

import pytest
from curvserve_client import Client

from tests.client.conventions import CONVENTIONS
from tests.client.test_conventions import different, local
from tests.client.ways import WAYS
from tests.server.process import serving

ALL = [(name, way) for name in CONVENTIONS for way in WAYS if way not in CONVENTIONS[name].refused]
ROUNDING = 1e-4
"""Of the way that the weights have come: two workers add up in another order."""


@pytest.fixture(scope="module")
def client() -> Iterator[Client]:
    """A server whose sessions have two workers each, on a cluster of its own."""
    arguments = ["--executor", "ray", "--workers-per-session", "2", "--cpus-per-worker", "0.1"]
    with (
        serving("--model", "mnist_cnn", "--log-level", "warning", *arguments) as server,
        Client(server.address) as client,
    ):
        yield client


@pytest.mark.campaign
@pytest.mark.parametrize(("name", "way"), ALL)
def test_a_convention_gives_the_parameters_of_the_local_loop(
    name: str, way: str, client: Client
) -> None:
    session = client.create_session("mnist_cnn", seed=5)
    try:
        found = CONVENTIONS[name].run(WAYS[way](session))
        assert session.info().execution.startswith("2 workers on ")
    finally:
        client.delete_session(session.name)
    within = max(ROUNDING, CONVENTIONS[name].within.get(way, 0.0))
    assert different(found, local(name, joined=way != "mirror"), within) == []
