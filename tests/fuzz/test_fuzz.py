"""A small campaign of the kind that `make fuzz` runs, and what it can be relied on for."""

from collections.abc import Iterator
from random import Random

import pytest
from curvserve_client.wire import encode

from tests.fuzz import campaign, mutations
from tests.fuzz.oracle import Verdict, is_legal, judge
from tests.server import tiny
from tests.server.process import Server, serving

SIZES = {"body": 2000, "document": 200, "head": 60}


@pytest.fixture
def server() -> Iterator[Server]:
    with serving("--model", tiny.REFERENCE, "--log-level", "error") as found:
        yield found


def test_no_mutation_fails_the_server_or_changes_a_session_or_stays_in_memory(
    server: Server,
) -> None:
    findings = campaign.run(server, 1, SIZES, iter)
    assert findings.violations == []
    assert findings.counts.total() == sum(SIZES.values())
    assert findings.counts["body", "400 malformed_body"] > 1000
    assert findings.counts["body", "422 invalid_batch"] > 100
    assert findings.counts["body", "200"] > 10


def test_an_item_is_made_again_from_its_seed() -> None:
    bodies = [mutations.mutated(Random("1 body 7")) for _ in range(2)]
    assert bodies[0] == bodies[1] != mutations.mutated(Random("1 body 8"))


def test_the_oracle_knows_a_good_batch_and_a_bad_one() -> None:
    good = judge(b"".join(encode(tiny.batch())))
    assert (good.code, good.difference()) == ("", "")
    label = judge(b"".join(encode(tiny.batch() | {"targets": tiny.batch()["targets"] + 1})))
    assert (label.code, label.difference()) == ("invalid_batch", "")


@pytest.mark.parametrize(
    ("verdict", "difference"),
    [
        (Verdict({}, "", None), "we take what safetensors refuses"),
        (Verdict(None, "of the weather", {}), "we refuse what safetensors takes"),
        (Verdict({}, "", {"x": ("U8", (1,), b"\0")}), "we read other tensors"),
    ],
)
def test_readers_that_differ_are_told(verdict: Verdict, difference: str) -> None:
    assert verdict.difference().startswith(difference)


def test_a_tensor_of_another_name_is_no_batch() -> None:
    assert not is_legal({"inputs": ("F32", (1, 3), bytes(12))})
