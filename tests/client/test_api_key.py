"""The API key: sent with every call, kept out of everything that people see."""

import traceback
from collections.abc import Callable

import httpx
import pytest
from curvserve_client import Client, ConnectionFailed, CurvserveError, connect
from curvserve_client.errors import Unauthorized, problem_document

from .servers import Running, answering, closed_port, http_json

KEY = "cs_abcdefghijklmnopqrstuvwxyz"
VARIABLE = "CURVSERVE_API_KEY"
MODELS = http_json({"models": []})


@pytest.fixture(autouse=True)
def no_key_of_the_machines_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(VARIABLE, raising=False)


def authorization(server: Running) -> str | None:
    return server.requests[-1].headers.get("authorization")


def test_a_key_that_is_given_is_sent() -> None:
    with answering(MODELS) as server, Client(server.url, api_key=KEY) as client:
        client.models()
        client.models()
    assert [each.headers["authorization"] for each in server.requests] == [f"Bearer {KEY}"] * 2


def test_the_environments_key_is_sent_where_none_is_given(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, KEY)
    with answering(MODELS) as server, Client(server.url) as client:
        client.models()
        assert authorization(server) == f"Bearer {KEY}"
    with answering(MODELS) as server, Client(server.url, api_key="cs_other") as client:
        client.models()
        assert authorization(server) == "Bearer cs_other"


@pytest.mark.parametrize("value", [None, ""])
def test_without_a_key_nothing_is_sent(monkeypatch: pytest.MonkeyPatch, value: str | None) -> None:
    if value is not None:
        monkeypatch.setenv(VARIABLE, value)
    with answering(MODELS) as server, Client(server.url) as client:
        client.models()
    assert authorization(server) is None


@pytest.mark.parametrize(
    "own",
    [
        lambda: httpx.Client(headers={"authorization": "Basic b3duOg=="}),
        lambda: httpx.Client(auth=("own", "")),
    ],
)
def test_a_client_with_an_authentication_of_its_own_keeps_it(
    monkeypatch: pytest.MonkeyPatch, own: Callable[[], httpx.Client]
) -> None:
    monkeypatch.setenv(VARIABLE, KEY)
    with answering(MODELS) as server, own() as http, Client(server.url, http=http) as client:
        client.models()
    assert authorization(server) == "Basic b3duOg=="


@pytest.mark.parametrize("key", ["", KEY + "\n", KEY + " x", "schlüssel" + KEY])
def test_a_key_that_no_header_can_carry_is_refused_without_being_shown(key: str) -> None:
    with pytest.raises(ValueError, match="the API key holds") as refusal:
        Client("http://127.0.0.1", api_key=key)
    assert KEY not in "".join(traceback.format_exception(refusal.value))


def test_a_key_is_in_no_text_of_a_client_or_an_error() -> None:
    refusal = http_json(
        problem_document(Unauthorized("no such API key is known here")),
        401,
        "application/problem+json",
    )
    with answering(refusal) as server, Client(server.url, api_key=KEY) as client:
        with pytest.raises(Unauthorized) as refused:
            client.models()
        shown = [repr(client), str(vars(client)), repr(refused.value), str(vars(refused.value))]
    with pytest.raises(ConnectionFailed) as failed:
        connect(f"http://127.0.0.1:{closed_port()}", model="mnist_cnn", api_key=KEY)
    for error in (refused.value, failed.value):
        assert isinstance(error, CurvserveError)
        shown += traceback.format_exception(error)
    assert not [text for text in shown if KEY in text]
