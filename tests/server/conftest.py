"""A session of its own for every test of the HTTP face, and an eye on what is documented."""

from collections.abc import Iterator

import httpx
import pytest

from tests.server.api import SessionApi
from tests.server.documented import check_documented


@pytest.fixture(scope="session")
def http(server_url: str) -> Iterator[httpx.Client]:
    """A connection to the server that the whole run shares."""
    hooks = {"response": [check_documented]}
    with httpx.Client(base_url=server_url, timeout=60, event_hooks=hooks) as client:
        yield client


@pytest.fixture
def session(http: httpx.Client) -> Iterator[SessionApi]:
    """A fresh session of `mnist_cnn`, ended after the test."""
    made = http.post("/v1/sessions", json={"model": "mnist_cnn"})
    assert made.status_code == 201, made.text
    yield SessionApi(http, made.json()["name"])
    http.delete(made.headers["location"])
