"""The table of errors: complete, and the same on both sides of the wire."""

import copy
import json
import pickle  # noqa: TID251  (that errors can be pickled is the claim)
from collections.abc import Callable
from typing import Any

import curvserve_client
import pytest
from curvserve_client import errors
from curvserve_client.errors import (
    PROBLEMS,
    CurvserveError,
    ProblemError,
    ProtocolError,
    from_problem,
    problem_document,
)

STATUSES = {
    "invalid_batch": 422,
    "unknown_quantity": 422,
    "invalid_rule": 422,
    "non_finite": 422,
    "malformed_body": 400,
    "missing_idempotency_key": 400,
    "unauthorized": 401,
    "forbidden": 403,
    "unknown_model": 404,
    "unknown_session": 404,
    "in_flight": 409,
    "nothing_pending": 409,
    "stale_version": 412,
    "missing_version": 428,
    "key_reused": 422,
    "body_too_large": 413,
    "length_required": 411,
    "overloaded": 429,
    "quota_exceeded": 429,
    "deadline_exceeded": 504,
    "draining": 503,
    "out_of_memory": 507,
    "no_device": 503,
    "workers_lost": 503,
    "session_lost": 410,
    "not_found": 404,
    "method_not_allowed": 405,
    "invalid_request": 422,
    "session_exists": 409,
    "unknown_checkpoint": 404,
    "checkpoint_exists": 409,
    "storage_failed": 503,
    "unsupported_media_type": 415,
    "internal": 500,
}
ALL = [
    value
    for value in vars(errors).values()
    if isinstance(value, type) and issubclass(value, CurvserveError)
]
EVERY_PROBLEM = pytest.mark.parametrize("problem", PROBLEMS.values(), ids=PROBLEMS)


def full(problem: type[ProblemError]) -> ProblemError:
    return problem(
        "it broke", request_id="r1", tensor="0.weight", expected="float32 [2]", retry_after=1.5
    )


def pickled(error: CurvserveError) -> Any:
    return pickle.loads(pickle.dumps(error))  # noqa: S301  # its own bytes


def test_the_table_is_the_contracts() -> None:
    assert {code: problem.status for code, problem in PROBLEMS.items()} == STATUSES
    assert list(PROBLEMS) == list(STATUSES)


def test_every_class_with_a_code_is_in_the_table() -> None:
    coded = {error for error in ALL if issubclass(error, ProblemError) and error.code}
    assert coded == set(PROBLEMS.values())


def test_every_class_is_exported() -> None:
    assert {error.__name__ for error in ALL} <= set(curvserve_client.__all__)


@EVERY_PROBLEM
def test_a_problem_says_what_it_is(problem: type[ProblemError]) -> None:
    assert problem.title
    assert problem.__doc__


@EVERY_PROBLEM
def test_a_problem_survives_the_wire(problem: type[ProblemError]) -> None:
    sent = full(problem)
    document = json.loads(json.dumps(problem_document(sent)))
    received = from_problem(document, problem.status)
    assert type(received) is problem
    assert vars(received) == vars(sent) | {"retry_after": None}  # that one is a header
    assert document["type"] == f"urn:curvserve:problem:{problem.code}"
    assert document["title"] == problem.title
    assert document["status"] == problem.status


@EVERY_PROBLEM
@pytest.mark.parametrize("repeat", [copy.copy, copy.deepcopy, pickled])
def test_a_problem_survives_copying(
    problem: type[ProblemError], repeat: Callable[[Any], Any]
) -> None:
    error = full(problem)
    error.add_note("in epoch 3")
    repeated = repeat(error)
    assert type(repeated) is problem
    assert str(repeated) == str(error)
    assert vars(repeated) == vars(error)


@pytest.mark.parametrize("error", [error for error in ALL if not issubclass(error, ProblemError)])
def test_other_errors_survive_pickling(error: type[CurvserveError]) -> None:
    repeated = pickled(error("nobody is there"))
    assert type(repeated) is error
    assert str(repeated) == "nobody is there"


def test_members_that_are_not_known_are_left_out() -> None:
    document = problem_document(errors.InvalidBatch("too long"))
    assert set(document) == {"type", "title", "status", "detail", "code"}


def test_the_message_says_what_was_wrong_expected_and_to_be_done() -> None:
    assert str(errors.InvalidBatch("inputs is float64")) == "inputs is float64"
    message = str(errors.InvalidBatch("inputs is float64", expected="float32 [N, 1, 28, 28]"))
    assert message == "inputs is float64; expected float32 [N, 1, 28, 28]"
    assert str(errors.OutOfMemory("64 GB")).startswith("64 GB (")


@pytest.mark.parametrize("code", ["brewing", None, 7, ["invalid_batch"], ""])
def test_an_unknown_code_is_a_protocol_error(code: object) -> None:
    error = from_problem({"code": code, "detail": "no coffee here"}, 418)
    assert isinstance(error, ProtocolError)
    assert "418" in str(error)
    assert "no coffee here" in str(error)


def test_a_bare_problem_falls_back_to_its_title() -> None:
    assert str(from_problem({"code": "draining", "title": "going down"}, 503)) == "going down"
    assert str(from_problem({"code": "draining"}, 503)) == "status 503"


def test_odd_members_become_text() -> None:
    error = from_problem({"code": "internal", "detail": 5, "tensor": ["a"]}, 500)
    assert isinstance(error, errors.InternalError)
    assert (error.detail, error.tensor) == ("5", "['a']")


def test_the_builtin_classes_catch_theirs() -> None:
    assert issubclass(errors.ConnectionFailed, ConnectionError)
    assert issubclass(errors.DeadlinePassed, TimeoutError)
    assert issubclass(errors.InvalidRule, ValueError)
    assert issubclass(errors.ParameterMismatch, ValueError)
