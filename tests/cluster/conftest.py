"""One Ray cluster of this machine for the tests of a file, with more CPUs than there are."""

import os
from collections.abc import Iterator

import pytest
import ray

from curvserve.cluster import joining


@pytest.fixture(scope="session")
def cluster() -> Iterator[None]:
    """A cluster that this process has begun and joined."""
    os.environ["RAY_AUTH_MODE"] = "disabled"  # nobody else can reach it
    joining.join(None)
    yield
    ray.shutdown()
