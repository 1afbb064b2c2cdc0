"""Workers, fronts and the local raylet are killed at random while clients train.

`python -m tests.cluster.campaign --kills 40`, or `make cluster-test`. A client sends each step with
the same key until it is acknowledged. In the end every session has as many versions as its client
has acknowledgements, and the very parameters of a session that nothing disturbed.
"""

import argparse
import random
import signal
import sys
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from threading import Condition

import psutil
import torch
from curvserve_client import Client
from curvserve_client.rules import DiagGGN
from torch import Tensor
from tqdm import tqdm

from tests.crash.run import free_port
from tests.server import tiny
from tests.server.process import PATIENCE, Server, serving

VICTIMS = "worker", "front", "raylet"
NAMES = "ann", "bob"
WORKERS = 2
DEADLINE = 300.0
RULE = DiagGGN(lr=0.01, momentum=0.5)


@dataclass
class Outcome:
    """What came of a run.

    Attributes:
        kills: victim -> how often.
        acknowledged: steps.
        problems: broken promises, in sentences.
    """

    kills: Counter[str] = field(default_factory=Counter)
    acknowledged: int = 0
    problems: list[str] = field(default_factory=list)


class Progress:
    """How many steps each client has had acknowledged, and whether they are to go on."""

    def __init__(self) -> None:
        """Begin at none."""
        self.steps = dict.fromkeys(NAMES, 0)
        self.stopped = False
        self._changed = Condition()

    def stepped(self, name: str) -> None:
        """Count one."""
        with self._changed:
            self.steps[name] += 1
            self._changed.notify_all()

    def wait(self, clients: Sequence[Future[None]]) -> None:
        """Return when every client has made two steps more: the second begins after this."""
        with self._changed:
            aim = {name: steps + 2 for name, steps in self.steps.items()}

            def reached() -> bool:
                ended = any(client.done() for client in clients)
                return ended or all(self.steps[name] >= aim[name] for name in NAMES)

            assert self._changed.wait_for(reached, DEADLINE), "nobody comes on"


@contextmanager
def front(port: int, folder: Path) -> Iterator[Server]:
    """A server with workers on a cluster of its own."""
    arguments = ["--port", str(port), "--model", tiny.REFERENCE, "--data-dir", str(folder)]
    arguments += ["--executor", "ray", "--workers-per-session", str(WORKERS)]
    arguments += ["--cpus-per-worker", "0.1", "--durability", "process", "--log-level", "error"]
    with serving(*arguments, RAY_AUTH_MODE="disabled") as server:
        yield server


def run(folder: Path, victims: Iterable[str]) -> Outcome:
    """Train while one victim after another is killed, and compare with undisturbed training.

    Args:
        folder: an empty folder.
        victims: who is killed.
    """
    outcome, progress, port = Outcome(), Progress(), free_port()
    todo, more = _Ahead(victims), True
    with ThreadPoolExecutor() as pool:
        clients: list[Future[None]] = []
        try:
            while more:
                with front(port, folder / "data") as server:
                    address = server.address
                    clients = clients or _begin(pool, address, progress)
                    more = _disturb(server, todo, outcome, progress, clients)
        finally:
            progress.stopped = True
        with front(port, folder / "data"):  # the last steps are acknowledged by this one
            for client in clients:
                client.result()
            for name, steps in progress.steps.items():
                outcome.acknowledged += steps
                found, expected = _state(address, name), _undisturbed(address, name, steps)
                _compare(name, steps, found, expected, outcome)
    return outcome


def descendants(pid: int, name: str) -> list[psutil.Process]:
    """Return the processes of a name that a process has begun, and those have.

    An actor at work has its method behind its name.
    """
    found = []
    for each in psutil.Process(pid).children(recursive=True):
        with suppress(psutil.NoSuchProcess):
            if each.name().partition(".")[0] == name:
                found.append(each)
    return found


def _begin(pool: ThreadPoolExecutor, address: str, progress: Progress) -> list[Future[None]]:
    with Client(address) as client:
        for seed, name in enumerate(NAMES):
            client.create_session("tiny", name, seed=seed, rule=RULE)
    return [pool.submit(_train, address, name, progress) for name in NAMES]


def _train(address: str, name: str, progress: Progress) -> None:
    with Client(address, timeout=DEADLINE) as client, client.session(name) as session:
        while not progress.stopped:
            session.step(*_batch(name, progress.steps[name]))
            progress.stepped(name)


def _batch(name: str, step: int) -> tuple[Tensor, Tensor]:
    batch = tiny.batch(1 + step % tiny.MAX_BATCH, 1.0 + NAMES.index(name))
    return batch["inputs"], batch["targets"]


def _disturb(
    server: Server,
    victims: "_Ahead",
    outcome: Outcome,
    progress: Progress,
    clients: Sequence[Future[None]],
) -> bool:
    """Kill one victim after another until the front is gone; tell whether there are more."""
    progress.wait(clients)
    for victim in victims:
        pid = server.process.pid
        if victim == "front":
            server.process.kill()
        else:
            name = "raylet" if victim == "raylet" else "ray::_Actor"
            chosen = random.choice(descendants(pid, name))
            chosen.send_signal(signal.SIGKILL)
        outcome.kills[victim] += 1
        if victim != "worker":  # a front does not outlive its raylet
            server.process.wait(PATIENCE)
            return not victims.empty
        progress.wait(clients)
    return False


class _Ahead:
    """An iterator that knows whether there is more."""

    def __init__(self, items: Iterable[str]) -> None:
        self._rest = iter(items)
        self._next = next(self._rest, None)

    @property
    def empty(self) -> bool:
        """Whether nothing is left."""
        return self._next is None

    def __iter__(self) -> Iterator[str]:
        while self._next is not None:
            item, self._next = self._next, next(self._rest, None)
            yield item


def _state(address: str, name: str) -> tuple[int, dict[str, Tensor]]:
    with Client(address, timeout=DEADLINE) as client, client.session(name) as session:
        parameters = session.pull()
        return session.version, parameters


def _undisturbed(address: str, name: str, steps: int) -> dict[str, Tensor]:
    with Client(address, timeout=DEADLINE) as client:
        seed = NAMES.index(name)
        with client.create_session("tiny", f"{name}-twin", seed=seed, rule=RULE) as session:
            for step in range(steps):
                session.step(*_batch(name, step))
            return session.pull()


def _compare(
    name: str,
    steps: int,
    found: tuple[int, dict[str, Tensor]],
    expected: dict[str, Tensor],
    outcome: Outcome,
) -> None:
    version, parameters = found
    if version != steps:
        outcome.problems.append(f"{name}: {steps} steps acknowledged, version {version}")
    if not all(torch.equal(parameters[key], expected[key]) for key in expected):
        outcome.problems.append(f"{name}: other parameters than undisturbed")


def main() -> int:
    """Run, print what came of it, and return the exit status."""
    parser = argparse.ArgumentParser(description="Kill workers, fronts and raylets.")
    parser.add_argument("--kills", type=int, default=40)
    parser.add_argument("--seed", type=int, default=0, help="of who is killed")
    given = parser.parse_args()
    random.seed(given.seed)
    victims = [random.choice(VICTIMS) for _ in range(given.kills)]
    folder = Path(tempfile.mkdtemp(prefix="curvserve-cluster-"))
    outcome = run(folder, tqdm(victims, unit=" kills", dynamic_ncols=True))
    print(dict(outcome.kills), f"{outcome.acknowledged} steps acknowledged")
    for problem in outcome.problems:
        print(problem, f"(files in {folder})")
    return bool(outcome.problems)


if __name__ == "__main__":
    sys.exit(main())
