"""The ledger: a key is carried out once, and its retry gets the answer."""

import pytest
from curvserve_client.errors import InFlight, KeyReused
from hypothesis import given
from hypothesis import strategies as st

from curvserve.sessions import Ledger, Receipt

ANSWER = Receipt(1, {"version": 1})


def test_the_retry_of_a_finished_request_gets_its_answer() -> None:
    ledger = Ledger()
    assert ledger.begin("key", b"request") is None
    ledger.finish("key", ANSWER)
    assert ledger.begin("key", b"request") is ANSWER


def test_the_retry_of_a_running_request_is_told_so() -> None:
    ledger = Ledger()
    ledger.begin("key", b"request")
    with pytest.raises(InFlight):
        ledger.begin("key", b"request")


@pytest.mark.parametrize("finished", [True, False])
def test_another_request_under_the_same_key_is_refused(finished: bool) -> None:
    ledger = Ledger()
    ledger.begin("key", b"request")
    if finished:
        ledger.finish("key", ANSWER)
    with pytest.raises(KeyReused):
        ledger.begin("key", b"another request")


def test_a_request_that_failed_may_be_tried_again() -> None:
    ledger = Ledger()
    ledger.begin("key", b"request")
    ledger.forget("key")
    assert ledger.begin("key", b"request") is None


@given(st.integers(1, 5), st.lists(st.integers(0, 9), unique=True))
def test_the_newest_answers_are_remembered(capacity: int, order: list[int]) -> None:
    ledger = Ledger(capacity)
    for number in order:
        ledger.begin(str(number), b"")
        ledger.finish(str(number), Receipt(number, {}))
    remembered = [number for number in order if ledger.begin(str(number), b"") is not None]
    assert remembered == order[-capacity:]


def test_running_requests_are_never_forgotten() -> None:
    ledger = Ledger(capacity=1)
    ledger.begin("slow", b"")
    for key in ("a", "b", "c"):
        ledger.begin(key, b"")
        ledger.finish(key, ANSWER)
    with pytest.raises(InFlight):
        ledger.begin("slow", b"")
