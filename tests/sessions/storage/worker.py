"""A process whose children train on a data folder and are killed; see `Workers`.

It forks them with everything imported. A job is a line of JSON on its standard input; it answers
with the child's own lines, and then with `exit` and the child's status.
"""

import json
import os
import resource
import signal
import subprocess
import sys
import traceback
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from curvserve import failpoints
from curvserve.sessions.storage import Level, StorageError
from tests.sessions.storage import training

ROOT = Path(__file__).parents[3]


@dataclass(frozen=True)
class Ended:
    """What a child said, and how it ended: an exit status, or the negative number of a signal."""

    said: list[list[Any]]
    status: int

    def last(self, what: str, default: int) -> int:
        """Return the newest number that the child said of something."""
        return max((int(line[1]) for line in self.said if line[0] == what), default=default)


class Workers:
    """Starts children one after another."""

    def __init__(self) -> None:
        self._parent = subprocess.Popen(
            [sys.executable, "-m", __name__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=ROOT,
        )

    def __enter__(self) -> "Workers":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: object, trace: TracebackType | None
    ) -> None:
        self._parent.kill()
        self._parent.communicate()

    def run(self, job: str, folder: Path, level: Level = Level.FULL, **options: Any) -> Ended:
        """Run a job to its end.

        Args:
            job: the name of a function of this module.
            folder: the data folder.
            level: its level.
            options: `failpoint`, `kill_after` (seconds), and what the job takes.
        """
        assert self._parent.stdin and self._parent.stdout
        line = {"job": job, "folder": str(folder), "level": level, **options}
        print(json.dumps(line), file=self._parent.stdin, flush=True)
        said: list[list[Any]] = []
        for text in self._parent.stdout:
            said.append(json.loads(text))
            if said[-1][0] == "exit":
                return Ended(said[:-1], said[-1][1])
        raise AssertionError("the worker ended")


def say(*words: Any) -> None:
    os.write(1, (json.dumps(words) + "\n").encode())


def train(folder: Path, level: Level, steps: int = 40, **_: Any) -> None:
    """Go on with the training where it is found, saying what is acknowledged."""
    store = training.open_folder(folder, level)
    sessions = store.recover().sessions
    first = training.check(store, sessions[0]) if sessions else 0
    if not sessions:
        store.create(training.RECORD, training.snapshot_at(0))
    say("durable", first)
    for version in range(first + 1, first + steps + 1):
        say("durable", training.take_step(store, version))
        say("committed", version)
        if version % 4 == 0:
            say("durable", store.snapshot(training.NAME, training.snapshot_at(version)))
    store.close()


def remake(folder: Path, level: Level, rounds: int = 1000, **_: Any) -> None:
    """Delete the session and begin one of the same name, again and again."""
    store = training.open_folder(folder, level)
    alive = bool(store.recover().sessions)
    for _round in range(rounds):
        if alive:
            store.delete(training.NAME)
        else:
            store.create(training.RECORD, training.snapshot_at(0))
            training.train(store, 1, 2)
        alive = not alive
        say("alive", alive)


def open_and_close(folder: Path, level: Level, **_: Any) -> None:
    training.open_folder(folder, level).close()


def _child(line: dict[str, Any]) -> None:
    failpoints.arm({failpoints.VARIABLE: line.get("failpoint", "")})
    if "file_size" in line:
        resource.setrlimit(resource.RLIMIT_FSIZE, (line["file_size"], line["file_size"]))
    job = globals()[line.pop("job")]
    try:
        job(Path(line.pop("folder")), Level(line.pop("level")), **line)
    except StorageError as error:
        say(type(error).__name__, str(error))
        sys.exit(1)


def _fork(line: dict[str, Any]) -> int:
    child = os.fork()
    if child == 0:
        try:
            _child(line)
            os._exit(0)
        except SystemExit:
            os._exit(1)
        except BaseException:
            traceback.print_exc()
            os._exit(2)
    if "kill_after" in line:
        signal.sigtimedwait({signal.SIGCHLD}, line["kill_after"])
        os.kill(child, signal.SIGKILL)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    signal.sigtimedwait({signal.SIGCHLD}, 0)  # not to be taken for the end of the next one
    return status


def _serve() -> None:
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGCHLD})
    for text in sys.stdin:
        say("exit", _fork(json.loads(text)))


if __name__ == "__main__":
    _serve()
