"""A server process for tests that want one of their own."""

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
PATIENCE = 60.0


@dataclass(frozen=True)
class Server:
    """A server that runs.

    Attributes:
        process: its process; what it prints on standard output is not yet read.
        announcement: the line that it printed first.
    """

    process: subprocess.Popen[str]
    announcement: str

    @property
    def address(self) -> str:
        """Where it listens."""
        return self.announcement.split()[-1]


@contextmanager
def serving(*arguments: str, **environment: str) -> Iterator[Server]:
    """Run `curvserve serve --port 0` with further arguments, and end it after the block."""
    command = [sys.executable, "-m", "curvserve", "serve", "--port", "0", *arguments]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, text=True, cwd=ROOT, env={**os.environ, **environment}
    ) as process:
        try:
            assert process.stdout is not None
            announcement = process.stdout.readline()
            assert " at http" in announcement, "no server; what it said is above"
            yield Server(process, announcement)
        finally:
            _end(process)


def _end(process: subprocess.Popen[str]) -> None:
    process.terminate()
    try:
        process.wait(PATIENCE)
    except subprocess.TimeoutExpired:
        process.kill()
        raise
