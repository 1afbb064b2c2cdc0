"""Server processes by the hundred: forked from one that has imported everything already.

Run as a program, it reads one line of JSON for each server that is to begin, and forks. The child
runs the command line as a person would, or, for a cold start, becomes a new interpreter that does.
On standard output come `ready`, then what each server says there, and `ended <status>`.
"""

import gc
import json
import os
import select
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from tests.server.process import PATIENCE, ROOT

IMPORTS = (
    "curvserve.server",
    "curvserve.server.run",
    "curvserve.sessions.stores",
    "tests.crash.model",
    "uvicorn.lifespan.on",
    "uvicorn.loops.auto",
)

ONE_THREAD = {"OMP_NUM_THREADS": "1"}


class Nursery:
    """A process that forks servers, one at a time; use it in a `with` block."""

    def __enter__(self) -> Self:
        """Begin, and wait until everything is imported."""
        command = [sys.executable, "-m", "tests.crash.nursery"]
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            cwd=ROOT,
            env={**os.environ, **ONE_THREAD},
        )
        self._said = b""
        assert self.line(PATIENCE) == "ready"
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """End it, and the server that it may still have."""
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.close()
        self._process.wait(PATIENCE)
        self._process.stdout.close()

    def start(
        self, arguments: Sequence[str], errors: Path, *, failpoint: str = "", cold: bool = False
    ) -> "Server":
        """Start a server.

        Args:
            arguments: of `curvserve`.
            errors: the file that its standard error is added to.
            failpoint: where it is to kill itself.
            cold: begin with a new interpreter, as a person's command does.
        """
        order = {
            "arguments": arguments,
            "errors": str(errors),
            "environment": {"CURVSERVE_FAILPOINT": failpoint, **ONE_THREAD},
            "cold": cold,
        }
        self.order(order)
        return Server(self)

    def order(self, order: Mapping[str, Any]) -> None:
        """Tell it what is to be done."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(order).encode() + b"\n")
        self._process.stdin.flush()

    def line(self, seconds: float) -> str:
        """Return the next line that is said within a time; empty where there is none."""
        assert self._process.stdout is not None
        while b"\n" not in self._said:
            if not select.select([self._process.stdout], [], [], seconds)[0]:
                return ""
            said = os.read(self._process.stdout.fileno(), 4096)
            assert said, "the nursery has died; what it said is above"
            self._said += said
        line, _, self._said = self._said.partition(b"\n")
        return line.decode()


class Server:
    """A server that was started."""

    def __init__(self, nursery: Nursery) -> None:
        """Stand for the newest child of a nursery."""
        self._nursery = nursery
        self._status: int | None = None

    def announced(self, seconds: float) -> bool:
        """Wait until it says that it serves; False where it ends before, or the time does."""
        return " at http" in self._line(seconds)

    def send(self, number: int) -> None:
        """Send it a signal, if it has not ended."""
        self._nursery.order({"signal": number})

    def ended(self) -> int:
        """Wait for its end; return its exit status, or the negative number of its signal."""
        while self._status is None:
            assert self._line(PATIENCE), "the server did not end"
        return self._status

    def _line(self, seconds: float) -> str:
        line = self._nursery.line(seconds)
        if line.startswith("ended "):
            self._status = int(line.split()[1])
        return line


def main() -> None:
    """Fork servers until standard input ends."""
    for name in IMPORTS:
        __import__(name)
    gc.freeze()  # or each child would copy all of it in its first collection
    assert threading.active_count() == len(os.listdir("/proc/self/task")) == 1
    print("ready", flush=True)
    while order := _next_order():
        if "signal" in order:
            continue  # it came after the end of the server that it was for
        child = os.fork()
        if not child:
            _serve(order)
            return
        print(f"ended {_watched(child)}", flush=True)


def _next_order() -> dict[str, Any]:
    # unbuffered, so that `select` sees what is not read yet
    line = b""
    while not line.endswith(b"\n"):
        said = os.read(0, 1)
        if not said:
            return {}
        line += said
    return dict(json.loads(line))


def _serve(order: Mapping[str, Any]) -> None:
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(os.open(order["errors"], os.O_WRONLY | os.O_CREAT | os.O_APPEND), 2)
    os.environ.update(order["environment"])
    if order["cold"]:
        os.execv(sys.executable, [sys.executable, "-m", "curvserve", *order["arguments"]])
    sys.argv[1:] = order["arguments"]
    from curvserve.cli import main as curvserve

    curvserve()


def _watched(child: int) -> int:
    """Return how a child ended; until then pass signals on, and kill it when nobody listens."""
    descriptor = os.pidfd_open(child)
    while descriptor not in select.select([descriptor, 0], [], [])[0]:
        number = _next_order().get("signal", signal.SIGKILL)
        with suppress(ProcessLookupError):
            signal.pidfd_send_signal(descriptor, number)
    os.close(descriptor)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


if __name__ == "__main__":
    main()
