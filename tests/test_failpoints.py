"""Failpoints: armed by name, reached the n-th time, and nothing otherwise."""

import subprocess
import sys

import pytest

from curvserve import failpoints

PROGRAM = """
from curvserve import failpoints
failpoints.arm()
for number in range(1, 5):
    failpoints.reached("before_compute")
    failpoints.reached("before_commit")
    print(number, flush=True)
"""


def run(setting: str) -> subprocess.CompletedProcess[str]:
    environment = {"PATH": "", "PYTHONPATH": ":".join(sys.path), failpoints.VARIABLE: setting}
    return subprocess.run(
        [sys.executable, "-c", PROGRAM], env=environment, capture_output=True, text=True
    )


@pytest.mark.parametrize(("setting", "lines"), [("before_commit", 0), ("before_commit:3", 2)])
def test_the_process_kills_itself_at_the_named_place(setting: str, lines: int) -> None:
    done = run(setting)
    assert done.returncode == -9
    assert len(done.stdout.splitlines()) == lines


@pytest.mark.parametrize("setting", ["", "after_commit", "before_commit:9"])
def test_nothing_happens_elsewhere(setting: str) -> None:
    assert len(run(setting).stdout.splitlines()) == 4


@pytest.mark.parametrize("setting", ["nowhere", "before_commit:0", "before_commit:-1", ":2", "a:b"])
def test_a_place_that_does_not_exist_is_refused(setting: str) -> None:
    with pytest.raises(ValueError, match="CURVSERVE_FAILPOINT is"):
        failpoints.arm({failpoints.VARIABLE: setting})
    failpoints.arm({})
