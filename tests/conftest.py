"""What every test may ask for: a server process with the built-in model."""

import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

settings.register_profile("fuzz", max_examples=2000)  # twenty times the default: make fuzz

START = 120.0  # seconds; importing torch on a busy machine takes its time
STOP = 30.0


@pytest.fixture(scope="session")
def server_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of one `curvserve serve --model mnist_cnn`, shared by the whole run.

    Tests make sessions of their own on it, and leave the default session alone.
    """
    errors = tmp_path_factory.mktemp("server") / "stderr"
    command = [sys.executable, "-m", "curvserve", "serve", "--model", "mnist_cnn", "--port", "0"]
    with (
        errors.open("w") as stderr,
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=stderr, text=True) as process,
    ):
        try:
            yield _announced(process, errors)
        finally:
            _stop(process)


def _announced(process: subprocess.Popen[str], errors: Path) -> str:
    assert process.stdout is not None
    too_late = threading.Timer(START, process.kill)  # ends the readline below
    too_late.start()
    line = process.stdout.readline()
    too_late.cancel()
    if " at http://" not in line:
        process.kill()
        process.wait()
        pytest.fail(f"the server did not start; it said {line!r} and\n{errors.read_text()}")
    return line.split()[-1]


def _stop(process: subprocess.Popen[str]) -> None:
    process.terminate()
    try:
        process.wait(STOP)
    except subprocess.TimeoutExpired:
        process.kill()
