"""A server process, or a script's, for tests that want one of their own.

Forked from one that has imported everything already, which saves the two seconds that this takes;
`cold` ones are what a person's command starts.
"""

import os
import runpy
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from multiprocessing import get_context
from multiprocessing.connection import Connection
from multiprocessing.context import ForkServerContext, ForkServerProcess
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import IO, Protocol

ROOT = Path(__file__).parents[2]
PATIENCE = 60.0

IMPORTS = [
    "curvserve.server",
    "curvserve.server.run",
    "curvserve.sessions.stores",
    "uvicorn.lifespan.on",
    "uvicorn.loops.auto",
    "torch.fx.experimental.symbolic_shapes",  # what the first backward pass loads
]


class Process(Protocol):
    """What is common to processes that were started in different ways."""

    pid: int
    stdout: IO[str] | None
    stderr: IO[str] | None

    def send_signal(self, number: int, /) -> None:
        """Send it a signal."""

    def terminate(self) -> None:
        """Send it SIGTERM."""

    def kill(self) -> None:
        """Send it SIGKILL."""

    def wait(self, seconds: float | None = None, /) -> int:
        """Return its exit status, or the negative number of the signal that ended it.

        Raises:
            subprocess.TimeoutExpired: it has not ended within so many seconds.
        """


@dataclass(frozen=True)
class Server:
    """A server that runs.

    Attributes:
        process: its process; what it prints on standard output is not yet read.
        announcement: the line that it printed first.
        log: what it writes on standard error, where a test has asked for it.
    """

    process: Process
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
def serving(
    *arguments: str, log: bool = False, cold: bool = False, **environment: str
) -> Iterator[Server]:
    """Run `curvserve serve --port 0` with further arguments, and end it after the block.

    With `log`, the test reads the server's log, and must, where there is much of it. With `cold`,
    or where OpenMP is told something, it is a new interpreter.
    """
    command = ["serve", "--port", "0", *arguments]
    cold = cold or any(name.startswith("OMP_") for name in environment)
    with (_started if cold else forked)(command, environment, log=log) as process:
        try:
            assert process.stdout is not None
            announcement = process.stdout.readline()
            assert announcement.startswith("curvserve: serving"), "no server; what it said is above"
            yield Server(process, announcement, process.stderr)
        finally:
            _end(process)


@contextmanager
def _started(
    arguments: Sequence[str], environment: Mapping[str, str], *, log: bool
) -> Iterator[Process]:
    with subprocess.Popen(
        [sys.executable, "-m", "curvserve", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE if log else None,
        text=True,
        cwd=ROOT,
        env={**os.environ, **environment},
    ) as process:
        yield process


def python(*arguments: str, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    """Run what `python FILE ...` or `python -m MODULE ...` runs, to its end."""
    with TemporaryDirectory() as folder:
        told = Path(folder, "stdout"), Path(folder, "stderr")
        given = (list(arguments), dict(os.environ), told, cwd)
        child = forkserver().Process(target=_interpret, args=given)
        child.start()
        child.join()
        stdout, stderr = (path.read_text() for path in told)
    assert child.exitcode is not None
    return subprocess.CompletedProcess(arguments, child.exitcode, stdout, stderr)


def _interpret(
    arguments: Sequence[str], environment: Mapping[str, str], told: Sequence[Path], cwd: Path
) -> None:
    for path, number in zip(told, (1, 2), strict=True):
        with path.open("wb") as file:
            os.dup2(file.fileno(), number)
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(cwd)
    if arguments[0] == "-m":
        sys.argv[:] = arguments[1:]
        runpy.run_module(arguments[1], run_name="__main__", alter_sys=True)
    else:
        sys.argv[:] = arguments
        sys.path[0] = str((cwd / arguments[0]).parent)
        runpy.run_path(arguments[0], run_name="__main__")


@contextmanager
def forked(
    arguments: Sequence[str], environment: Mapping[str, str], *, log: bool
) -> Iterator[Process]:
    """Run a `curvserve` command, its standard output as a stream; it is ended by who asks."""
    stdout, out = forkserver().Pipe(duplex=False)
    # not the error output that the process had that it is forked from
    stderr, err = (
        forkserver().Pipe(duplex=False) if log else (None, Connection(os.dup(2), readable=False))
    )
    given = (list(arguments), {**os.environ, **environment}, out, err)
    child = forkserver().Process(target=_serve, args=given, daemon=True)
    child.start()
    out.close()
    err.close()
    with ExitStack() as stack:
        said, logged = (
            stack.enter_context(os.fdopen(os.dup(end.fileno()))) if end else None
            for end in (stdout, stderr)
        )
        yield _Forked(child, said, logged)


class _Forked:
    """A forked process, by the methods of one that was started."""

    def __init__(
        self, child: ForkServerProcess, stdout: IO[str] | None, stderr: IO[str] | None
    ) -> None:
        assert child.pid is not None
        self._child, self.pid, self.stdout, self.stderr = child, child.pid, stdout, stderr

    def send_signal(self, number: int, /) -> None:
        # one that has just ended may not be known to be dead
        with suppress(ProcessLookupError):
            if self._child.is_alive():
                os.kill(self.pid, number)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def wait(self, seconds: float | None = None, /) -> int:
        self._child.join(seconds)
        if self._child.exitcode is None:
            raise subprocess.TimeoutExpired("curvserve serve", seconds or 0)
        return self._child.exitcode


@cache
def forkserver() -> ForkServerContext:
    """Where processes are forked that have imported everything already."""
    context = get_context("forkserver")
    context.set_forkserver_preload(IMPORTS)
    return context


def _serve(
    arguments: Sequence[str],
    environment: Mapping[str, str],
    out: Connection,
    err: Connection,
) -> None:
    for line, number in ((out, 1), (err, 2)):
        os.dup2(line.fileno(), number)
        line.close()
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(ROOT)
    sys.argv[:] = ["curvserve", *arguments]
    from curvserve.cli import main as curvserve

    curvserve()


def _end(process: Process) -> None:
    process.terminate()
    try:
        process.wait(PATIENCE)
    except subprocess.TimeoutExpired:
        process.kill()
        raise
