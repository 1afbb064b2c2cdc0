"""A server process for tests that want one of their own."""

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

ROOT = Path(__file__).parents[2]
PATIENCE = 60.0


@dataclass(frozen=True)
class Server:
    """A server that runs.

    Attributes:
        process: its process; what it prints on standard output is not yet read.
        announcement: the line that it printed first.
        log: what it writes on standard error, where a test has asked for it.
    """

    process: subprocess.Popen[str]
    announcement: str
    log: IO[str] | None

    @property
    def address(self) -> str:
        """Where it listens."""
        return self.announcement.split()[-1]

    def logged(self, part: str) -> str:
        """Return the next line of log that holds a text; wait for it."""
        assert self.log is not None
        return next(line for line in self.log if part in line)


@contextmanager
def serving(*arguments: str, log: bool = False, **environment: str) -> Iterator[Server]:
    """Run `curvserve serve --port 0` with further arguments, and end it after the block.

    With `log`, the test reads the server's log, and must, where there is much of it.
    """
    command = [sys.executable, "-m", "curvserve", "serve", "--port", "0", *arguments]
    with subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE if log else None,
        text=True,
        cwd=ROOT,
        env={**os.environ, **environment},
    ) as process:
        try:
            assert process.stdout is not None
            announcement = process.stdout.readline()
            assert announcement.startswith("curvserve: serving"), "no server; what it said is above"
            yield Server(process, announcement, process.stderr)
        finally:
            _end(process)


def _end(process: subprocess.Popen[str]) -> None:
    process.terminate()
    try:
        process.wait(PATIENCE)
    except subprocess.TimeoutExpired:
        process.kill()
        raise
