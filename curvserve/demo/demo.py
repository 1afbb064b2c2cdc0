"""The demo from beginning to end; torch is imported here while the server imports it too."""

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

MODEL = "mnist_cnn"
_ANNOUNCED = " at http://"
_SHUTDOWN_SECONDS = 30


class DemoFailed(Exception):
    """The demo cannot run; the text says why, in one line."""


def run(*, steps: int, data_dir: Path | None, port: int, keep: bool, as_json: bool) -> None:
    """Serve `mnist_cnn`, train it in a remote loop, and print how it went.

    Args:
        steps: training steps, each one round trip.
        data_dir: folder that holds real MNIST; None for the bundled digits.
        port: the server's port; 0 for a free one.
        keep: leave the server up until Ctrl-C.
        as_json: print the outcome alone.

    Raises:
        DemoFailed: no data, or the server did not start or failed.
    """
    with _server(port) as process:
        from curvserve_client import CurvserveError

        from .loop import load, say, train

        tell = _nothing if as_json else say
        try:
            data = load(data_dir)
            announcement = _announcement(process)
            address = announcement.rpartition(" ")[2]
            tell(announcement)
            outcome = train(address, MODEL, data, steps, tell)
        except (CurvserveError, FileNotFoundError) as error:
            raise DemoFailed(str(error)) from error
        if as_json:
            say(json.dumps({"server": address, **asdict(outcome)}, indent=2))
        share, count = outcome.accuracy, outcome.held_out
        tell(f"held-out accuracy {share:.1%} on {count} digits that it was not trained on")
        rate = f"{outcome.seconds:.1f} s: {steps / outcome.seconds:.1f} steps/s"
        tell(f"{steps} steps over HTTP in {rate}")
        tell(f"server and page: {address}")
        if keep:
            tell("the server stays up; Ctrl-C ends it")
            _wait(process)


@contextmanager
def _server(port: int) -> Iterator[subprocess.Popen[str]]:
    """Run `curvserve serve` in a process of its own, and end it after the block."""
    command = [sys.executable, "-m", "curvserve", "serve", "--model", MODEL, "--port", str(port)]
    command += ["--log-level", "warning"]  # the loop has its own lines to show
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            yield process
        finally:
            process.terminate()
            try:
                process.wait(_SHUTDOWN_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()


def _announcement(process: "subprocess.Popen[str]") -> str:
    """Return the line in which the server says where it listens; wait for it."""
    assert process.stdout is not None
    line = process.stdout.readline().strip()
    if _ANNOUNCED not in line:
        raise DemoFailed("the server did not start; what it said is above")
    return line


def _wait(process: "subprocess.Popen[str]") -> None:
    try:
        process.wait()
    except KeyboardInterrupt:
        return  # what was waited for


def _nothing(line: str) -> None:
    """Take a line of log that nobody reads."""
