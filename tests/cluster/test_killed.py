"""The local raylet, and the front with it, are killed while clients train; nobody is left."""

from pathlib import Path

import psutil
import pytest

from tests.cluster.campaign import descendants, front, run
from tests.crash.run import free_port
from tests.server.process import PATIENCE


@pytest.mark.campaign
def test_nothing_is_lost_and_nothing_done_twice(tmp_path: Path) -> None:
    outcome = run(tmp_path, ["raylet"])  # and the front, which ends with its raylet
    assert outcome.problems == []
    assert outcome.kills == {"raylet": 1} and outcome.acknowledged >= 4


def test_a_front_that_is_killed_leaves_no_process(tmp_path: Path) -> None:
    with front(free_port(), tmp_path) as server:
        left = [
            each
            for name in ("raylet", "gcs_server")
            for each in descendants(server.process.pid, name)
        ]
        assert len(left) == 2
        server.process.kill()
        server.process.wait(PATIENCE)
        _, alive = psutil.wait_procs(left, PATIENCE)
        assert not alive
