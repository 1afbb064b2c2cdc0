"""What is acknowledged survives the server; the sample of `make crash-test` that always runs."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from curvserve.failpoints import NAMES
from tests.crash.endings import Ending, at_random, each_place_once
from tests.crash.nursery import Nursery
from tests.crash.run import Outcome, crash


@pytest.fixture(scope="module")
def nursery() -> Iterator[Nursery]:
    with Nursery() as found:
        yield found


def check(nursery: Nursery, folder: Path, level: str, endings: Sequence[Ending]) -> Outcome:
    """Run, with no promise broken and every session as if nothing had happened."""
    outcome = crash(nursery, folder, level, 1, endings)
    assert outcome.violations == []
    assert outcome.equal == outcome.sessions > 0
    assert outcome.acknowledged > 0
    assert sum(outcome.ends.values()) == len(endings)
    return outcome


def test_a_kill_at_any_place_loses_nothing_and_doubles_nothing(
    nursery: Nursery, tmp_path: Path
) -> None:
    outcome = check(nursery, tmp_path, "full", each_place_once("full", 1))
    assert all(outcome.ends[place] == 1 for place in NAMES)


def test_the_level_process_survives_kills_at_random(nursery: Nursery, tmp_path: Path) -> None:
    check(nursery, tmp_path, "process", at_random("process", 2, 3))


def test_the_level_snapshot_loses_at_most_what_it_did_not_call_durable(
    nursery: Nursery, tmp_path: Path
) -> None:
    check(nursery, tmp_path, "snapshot", at_random("snapshot", 3, 3))
