"""Parameters: a version can be read, kept in a cache, and replaced."""

import pytest
import torch

from tests.server.api import SessionApi, as_json, body, code, digits, equal


def test_the_parameters_are_the_networks_at_the_sessions_seed(session: SessionApi) -> None:
    from curvserve.models.mnist_cnn import network

    with torch.random.fork_rng():
        torch.manual_seed(0)
        expected = {name: p.detach() for name, p in network().named_parameters()}
    assert equal(session.parameters(), expected)


@pytest.mark.parametrize("tag", ['"0"', 'W/"0"', '"9", "0"', "*"])
def test_who_has_the_version_is_not_sent_it_again(session: SessionApi, tag: str) -> None:
    answer = session.get("parameters", **{"if-none-match": tag})
    assert (answer.status_code, answer.content, answer.headers["etag"]) == (304, b"", '"0"')


def test_who_has_an_older_version_is_sent_the_current_one(session: SessionApi) -> None:
    session.send("step", body(digits()))
    answer = session.get("parameters", **{"if-none-match": '"0"'})
    assert (answer.status_code, answer.headers["etag"]) == (200, '"1"')


def test_replaced_parameters_are_what_is_read_next(session: SessionApi) -> None:
    new = {name: tensor + 1 for name, tensor in session.parameters().items()}
    answer = session.send("parameters", body(new), version=0)
    assert answer.json() == {"version": 1, "durable_version": None}
    assert answer.headers["etag"] == '"1"'

    assert equal(session.parameters(), new)
    assert session.get().json()["steps"] == 0


def test_parameters_may_travel_as_json(session: SessionApi) -> None:
    answer = session.get("parameters", accept="application/json")
    tensors = {name: torch.tensor(v) for name, v in answer.json()["tensors"].items()}
    assert answer.json()["version"] == 0
    assert equal(tensors, session.parameters())


def test_a_replacement_over_a_version_that_has_passed_is_refused(session: SessionApi) -> None:
    session.send("step", body(digits()))
    before = session.state()
    answer = session.send("parameters", body(session.parameters()), version=0)
    assert (code(answer), answer.status_code) == ("stale_version", 412)
    assert answer.headers["etag"] == '"1"'
    assert session.state() == before


@pytest.mark.parametrize(
    ("header", "expected", "status"),
    [("idempotency-key", "missing_idempotency_key", 400), ("if-match", "missing_version", 428)],
)
def test_a_replacement_needs_key_and_version(
    session: SessionApi, header: str, expected: str, status: int
) -> None:
    answer = session.send("parameters", b"", without=header)
    assert (code(answer), answer.status_code) == (expected, status)


def test_a_replacement_is_made_once(session: SessionApi) -> None:
    content = body(session.parameters())
    for _ in range(2):
        answer = session.send("parameters", content, version=0, key="once")
        assert answer.json()["version"] == 1
    assert session.get().headers["etag"] == '"1"'


def test_a_body_larger_than_the_parameters_is_refused_unread(session: SessionApi) -> None:
    answer = session.send("parameters", as_json({"x": torch.zeros(1)}) + b" " * 9_000_000)
    assert (code(answer), answer.status_code) == ("body_too_large", 413)
