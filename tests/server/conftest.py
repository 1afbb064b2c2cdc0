"""A session of its own for every test of the HTTP face."""

from collections.abc import Iterator

import httpx
import pytest

from tests.server.api import SessionApi


@pytest.fixture(scope="session")
def http(server_url: str) -> Iterator[httpx.Client]:
    """A connection to the server that the whole run shares."""
    with httpx.Client(base_url=server_url, timeout=60) as client:
        yield client


@pytest.fixture
def session(http: httpx.Client) -> Iterator[SessionApi]:
    """A fresh session of `mnist_cnn`, ended after the test."""
    made = http.post("/v1/sessions", json={"model": "mnist_cnn"})
    assert made.status_code == 201, made.text
    yield SessionApi(http, made.json()["name"])
    http.delete(made.headers["location"])
