"""What does not fit is refused with the contract's code, and the session stays as it was."""

from typing import Any

import httpx
import pytest
import torch
from curvserve_client.errors import PROBLEMS
from curvserve_client.wire import MEDIA_TYPE
from torch import Tensor

from tests.server.api import COMPUTE, SessionApi, body, code, digits


def changed(**tensors: Tensor) -> dict[str, Tensor]:
    return digits() | tensors


def with_value(name: str, index: tuple[int, ...], value: float) -> dict[str, Tensor]:
    batch = digits()
    batch[name][index] = value
    return batch


WRONG_BATCHES: dict[str, tuple[dict[str, Tensor], str]] = {
    "dtype of the inputs": (changed(inputs=digits()["inputs"].double()), "inputs"),
    "dtype of the targets": (changed(targets=digits()["targets"].float()), "targets"),
    "shape of the inputs": (changed(inputs=torch.zeros(8, 28, 28)), "inputs"),
    "shape of the targets": (changed(targets=torch.zeros(8, 1).long()), "targets"),
    "number of targets": (changed(targets=torch.zeros(7).long()), "targets"),
    "no samples": (
        {"inputs": torch.zeros(0, 1, 28, 28), "targets": torch.zeros(0).long()},
        "inputs",
    ),
    "a name": ({"images": digits()["inputs"], "targets": digits()["targets"]}, "images"),
    "a tensor too many": (changed(weights=torch.ones(8)), "weights"),
    "a label above": (with_value("targets", (3,), 10), "targets"),
    "a label below": (with_value("targets", (3,), -100), "targets"),
    "a NaN": (with_value("inputs", (2, 0, 5, 5), float("nan")), "inputs"),
    "an infinity": (with_value("inputs", (2, 0, 5, 5), float("inf")), "inputs"),
}


@pytest.mark.parametrize("call", COMPUTE)
@pytest.mark.parametrize("what", WRONG_BATCHES)
def test_a_wrong_batch(session: SessionApi, call: str, what: str) -> None:
    batch, tensor = WRONG_BATCHES[what]
    before = session.state()
    answer = session.send(call, body(batch))
    assert code(answer) == "invalid_batch"
    assert answer.json()["tensor"] == tensor and answer.json()["expected"]
    assert session.state() == before


GOOD = body(digits())

MALFORMED: dict[str, tuple[str, bytes]] = {
    "cut short": (MEDIA_TYPE, GOOD[:-1]),
    "too long": (MEDIA_TYPE, GOOD + b"\0"),
    "empty": (MEDIA_TYPE, b""),
    "no safetensors": (MEDIA_TYPE, b"\xff" * 64),
    "an unknown dtype": (MEDIA_TYPE, GOOD.replace(b'"F32"', b'"F31"')),
    "no JSON": ("application/json", b"{"),
    "no JSON object": ("application/json", b"[1]"),
    "a NaN in JSON": ("application/json", b'{"inputs": [NaN], "targets": [1]}'),
    "JSON nested too deeply": ("application/json", b'{"inputs": ' + b"[" * 100_000),
    "JSON that is no text": ("application/json", b"\xff\xfe\xfd"),
}


@pytest.mark.parametrize("what", MALFORMED)
def test_a_malformed_body(session: SessionApi, what: str) -> None:
    media_type, content = MALFORMED[what]
    before = session.state()
    answer = session.send("step", content, media_type=media_type)
    assert (code(answer), answer.status_code) == ("malformed_body", 400)
    assert session.state() == before


def of_session(name: str, **arguments: Any) -> Any:
    return lambda session: SessionApi(session.http, name).send("step", GOOD, **arguments)


def of_step(**arguments: Any) -> Any:
    return lambda session: session.send("step", GOOD, **arguments)


OTHERS: dict[str, tuple[Any, str, str]] = {
    "another session": (of_session("nobody"), "unknown_session", "nobody"),
    "a rule option": (of_step(query={"betas": "0.9"}), "invalid_rule", "lr, damping"),
    "no number": (of_step(query={"lr": "fast"}), "invalid_rule", "fast"),
    "a negative lr": (of_step(query={"lr": "-1"}), "invalid_rule", "lr"),
    "a NaN lr": (of_step(query={"lr": "nan"}), "invalid_rule", "lr"),
    "no damping": (of_step(query={"damping": "0"}), "invalid_rule", "damping"),
    "no idempotency key": (of_step(without="idempotency-key"), "missing_idempotency_key", ""),
    "an unusable key": (of_step(key="a b"), "invalid_request", "visible ASCII"),
    "no version": (of_step(without="if-match"), "missing_version", ""),
    "an older version": (of_step(version=7), "stale_version", "7"),
    "a weak tag": (of_step(version='W/"0"'), "stale_version", ""),
    "no tag": (of_step(version="0"), "invalid_request", "quotes"),
    "another media type": (of_step(media_type="text/csv"), "unsupported_media_type", MEDIA_TYPE),
    "overflow": (of_step(query={"lr": "1e300"}), "invalid_rule", "lr"),
}


@pytest.mark.parametrize("what", OTHERS)
def test_another_wrong_request(session: SessionApi, what: str) -> None:
    send, expected, told = OTHERS[what]
    before = session.state()
    answer = send(session)
    assert code(answer) == expected
    assert answer.status_code == PROBLEMS[expected].status
    assert told in answer.text
    assert session.state() == before


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ({"quantities": "grad,hessian"}, "unknown_quantity"),
        ({"quantities": ""}, "unknown_quantity"),
        ({"mc_samples": "0"}, "invalid_request"),
        ({"mc_samples": "many"}, "invalid_request"),
        ({"quantites": "grad"}, "invalid_request"),
    ],
)
def test_a_wrong_question_for_curvature(
    session: SessionApi, query: dict[str, str], expected: str
) -> None:
    assert code(session.send("curvature", GOOD, query=query)) == expected


def test_a_quantity_that_is_not_served_is_told_what_is(session: SessionApi) -> None:
    answer = session.send("curvature", GOOD, query={"quantities": "hessian"})
    assert "diag_ggn_mc" in answer.json()["expected"]


def test_a_computation_that_overflows(session: SessionApi) -> None:
    before = session.state()
    batch = changed(inputs=torch.full((8, 1, 28, 28), 3e38))
    for call in COMPUTE:
        answer = session.send(call, body(batch))
        assert (code(answer), answer.status_code) == ("non_finite", 422)
    assert session.state() == before


@pytest.mark.parametrize(
    ("document", "expected"),
    [
        ({"model": "resnet"}, "unknown_model"),
        ({}, "invalid_request"),
        ({"model": "mnist_cnn", "sede": 1}, "invalid_request"),
        ({"model": "mnist_cnn", "seed": -1}, "invalid_request"),
        ({"model": "mnist_cnn", "seed": 1.5}, "invalid_request"),
        ({"model": "mnist_cnn", "name": "../etc"}, "invalid_request"),
        ({"model": "mnist_cnn", "name": ""}, "invalid_request"),
        ({"model": "mnist_cnn", "name": "mnist_cnn"}, "session_exists"),
        ({"model": "mnist_cnn", "rule": {"name": "adagrad"}}, "invalid_rule"),
        ({"model": "mnist_cnn", "rule": {"name": "sgd", "damping": 1.0}}, "invalid_rule"),
        ({"model": "mnist_cnn", "rule": {"lr": "fast"}}, "invalid_rule"),
        ({"model": "mnist_cnn", "rule": {"lr": -0.1}}, "invalid_rule"),
    ],
)
def test_a_wrong_wish_for_a_session(
    http: httpx.Client, document: dict[str, Any], expected: str
) -> None:
    count = len(http.get("/v1/sessions").json()["sessions"])
    answer = http.post("/v1/sessions", json=document)
    assert code(answer) == expected
    assert len(http.get("/v1/sessions").json()["sessions"]) == count


@pytest.mark.parametrize(
    ("method", "path", "expected"),
    [
        ("GET", "/v1/models/resnet", "unknown_model"),
        ("GET", "/v1/sessions/nobody", "unknown_session"),
        ("DELETE", "/v1/sessions/nobody", "unknown_session"),
        ("GET", "/v1/sessions/nobody/parameters", "unknown_session"),
        ("GET", "/v2/models", "not_found"),
        ("PATCH", "/v1/models", "method_not_allowed"),
        ("GET", "/redoc", "not_found"),
    ],
)
def test_a_wrong_address(http: httpx.Client, method: str, path: str, expected: str) -> None:
    answer = http.request(method, path)
    assert code(answer) == expected
    assert answer.status_code == PROBLEMS[expected].status


WRONG_PARAMETERS: dict[str, tuple[dict[str, Tensor | None], str, str]] = {
    "a name": ({"0.wait": torch.zeros(20, 1, 5, 5)}, "0.wait", "invalid_batch"),
    "one missing": ({"9.bias": None}, "9.bias", "invalid_batch"),
    "shape": ({"0.weight": torch.zeros(20, 5, 5)}, "0.weight", "invalid_batch"),
    "dtype": ({"0.bias": torch.zeros(20).double()}, "0.bias", "invalid_batch"),
    "a NaN": ({"0.bias": torch.full((20,), float("nan"))}, "0.bias", "non_finite"),
}


@pytest.mark.parametrize("what", WRONG_PARAMETERS)
def test_wrong_parameters(session: SessionApi, what: str) -> None:
    replaced, tensor, expected = WRONG_PARAMETERS[what]
    before = session.state()
    tensors = {**session.parameters(), **replaced}
    sent = {name: value for name, value in tensors.items() if value is not None}
    answer = session.send("parameters", body(sent))
    assert code(answer) == expected
    assert answer.json()["tensor"] == tensor
    assert session.state() == before
