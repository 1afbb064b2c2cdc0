"""One Ray cluster of this machine for the tests of a file, with more CPUs than there are."""

import os
from collections.abc import Iterator

import pytest
import ray

from curvserve.cluster import joining


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    """A cluster that this process has begun and joined."""
    joining.join(None)
    yield
    ray.shutdown()


@pytest.fixture(autouse=True, scope="session")
def without_token() -> None:
    """Ray asks for a token wherever a file has one, which not every machine does."""
    os.environ["RAY_AUTH_MODE"] = "disabled"
