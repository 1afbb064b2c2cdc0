"""One data folder, one server after another on it, and clients that train through all of them."""

import random
import signal
import socket
import threading
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from tests.crash.client import Abandoned, Client, Service, State, Violation
from tests.crash.endings import AT_START, SIGTERM, SNAPSHOT_EVERY, Ending, is_kill
from tests.crash.nursery import Nursery, Server
from tests.crash.workload import Workload, workloads
from tests.server.api import equal
from tests.server.process import PATIENCE


@dataclass
class Outcome:
    """What came of a run.

    Attributes:
        level: the durability level.
        ends: place -> servers that ended there.
        kills: how many of these were kills.
        cold: how many kills were of new interpreters.
        acknowledged: changes that clients were told to be made.
        retries: requests that were sent again.
        given_up: acknowledged changes, not told to be durable, that were lost at `snapshot`.
        sessions: how many were trained.
        equal: how many of them had the answers and the last state of an undisturbed run.
        violations: broken promises.
    """

    level: str
    ends: Counter[str] = field(default_factory=Counter)
    kills: int = 0
    cold: int = 0
    acknowledged: int = 0
    retries: int = 0
    given_up: int = 0
    sessions: int = 0
    equal: int = 0
    violations: list[Violation] = field(default_factory=list)

    def count(self, ending: Ending) -> None:
        """Count the end of a server."""
        self.ends[ending.place] += 1
        self.kills += is_kill(ending)
        self.cold += is_kill(ending) and ending.cold


class Place:
    """Where the servers of a run live: one address, one data folder.

    Attributes:
        service: what clients know of them.
        errors: the file with all that they say on standard error.
    """

    def __init__(self, nursery: Nursery, folder: Path, level: str) -> None:
        """Choose a port; nothing is started.

        Args:
            nursery: where servers come from.
            folder: for the data folder and `errors`.
            level: the durability level.
        """
        port = free_port()
        self.errors = folder / "stderr"
        self.service = Service(f"http://127.0.0.1:{port}")
        self._nursery = nursery
        self._server: Server | None = None
        self._arguments = ["serve", "--port", str(port), "--log-level", "warning"]
        for model in ("tiny", "normalised"):
            self._arguments += ["--model", f"tests.crash.model:{model}"]
        self._durable = ["--data-dir", str(folder / "data"), "--durability", level]
        self._durable += ["--snapshot-every", str(SNAPSHOT_EVERY)]

    def live(self, ending: Ending) -> None:
        """Have a server live on the data folder until it ends as it is to end."""
        server = self._start(self._durable, ending)
        served = server.announced(ending.delay if ending.place == AT_START else PATIENCE)
        self.service.told(serving=served)
        if not ending.failpoint:
            if served:
                self.service.wait_for_changes(ending.time)
                self.service.failed_within(ending.delay)
            self.service.told(serving=False)
            server.send(signal.SIGTERM if ending.place == SIGTERM else signal.SIGKILL)
        status = server.ended()
        self.service.told(serving=False)
        expected = 0 if ending.place == SIGTERM else -signal.SIGKILL
        if status != expected and not self.service.failed_within(0.0):
            raise Violation("other", f"the server ended at {ending.place} with status {status}")

    @contextmanager
    def undisturbed(self, *, durable: bool, end: int = signal.SIGKILL) -> Iterator[None]:
        """Serve during a block; on the data folder, or keeping nothing."""
        server = self._start(self._durable if durable else [], Ending(""))
        assert server.announced(PATIENCE), self.errors.read_text()
        self.service.told(serving=True)
        try:
            yield
        finally:
            self.service.told(serving=False)
            server.send(end)
            status = server.ended()
        if status != (0 if end == signal.SIGTERM else -end):
            raise Violation("other", f"an idle server ended with status {status}")

    def fail(self) -> None:
        """End the run: nobody will come to the place where the server is to end."""
        self.service.fail()
        if self._server is not None:
            self._server.send(signal.SIGKILL)

    def _start(self, durable: Sequence[str], ending: Ending) -> Server:
        self._server = self._nursery.start(
            [*self._arguments, *durable],
            self.errors,
            failpoint=ending.failpoint,
            cold=ending.cold,
        )
        if self.service.failed_within(0.0):
            self._server.send(signal.SIGKILL)
        return self._server


def crash(
    nursery: Nursery, folder: Path, level: str, seed: int, endings: Iterable[Ending]
) -> Outcome:
    """Train through the ends of many servers, and compare with training that nothing disturbed.

    Args:
        nursery: where servers come from.
        folder: an empty folder.
        level: the durability level.
        seed: of all that the clients do.
        endings: how one server after another ends.
    """
    place, outcome = Place(nursery, folder, level), Outcome(level)
    clients = [_client(place, work, level) for work in workloads(seed)]
    try:
        final = _train(place, clients, endings, outcome)
        _compare_after_stop(place, clients, final)
        _compare_with_undisturbed(place, clients, final, outcome)
        _check_log(place, level)
    except Violation as violation:
        outcome.violations.append(violation)
    outcome.sessions = len(clients)
    outcome.acknowledged = sum(len(client.answers) for client in clients)
    outcome.retries = sum(client.retries for client in clients)
    outcome.given_up = sum(client.lost for client in clients)
    for client in clients:
        client.close()
    return outcome


def free_port() -> int:
    """Return a port that nothing listens on.

    Not one that the system gives to callers: who calls such a port while nobody listens there may
    be given that very port, and be connected to itself.
    """
    while True:
        port = random.SystemRandom().randrange(20000, 32000)
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)):
                return port


def _client(place: Place, work: Workload, level: str) -> Client:
    return Client(work, place.service, may_lose=level == "snapshot")


def _train(
    place: Place, clients: Sequence[Client], endings: Iterable[Ending], outcome: Outcome
) -> list[State]:
    """Train until the last ending, and return the states that this came to."""
    stop = threading.Event()

    def work(client: Client) -> None:
        try:
            client.create()
            client.train(stop)
        except BaseException:
            place.fail()
            raise

    with ThreadPoolExecutor(len(clients)) as pool:
        jobs = [pool.submit(work, client) for client in clients]
        try:
            _end_servers(place, endings, outcome)
            stop.set()
            if place.service.failed_within(0.0):
                _raise_first([error for job in jobs if (error := job.exception())])
            with place.undisturbed(durable=True, end=signal.SIGTERM):
                _raise_first([error for job in jobs if (error := job.exception())])
                return [_final_state(client) for client in clients]
        except BaseException:
            place.fail()
            raise


def _end_servers(place: Place, endings: Iterable[Ending], outcome: Outcome) -> None:
    for ending in endings:
        place.live(ending)
        if place.service.failed_within(0.0):
            return
        outcome.count(ending)


def _raise_first(errors: Sequence[BaseException]) -> None:
    """Raise what a client met; that others gave up after it says nothing."""
    for error in sorted(errors, key=lambda error: isinstance(error, Abandoned)):
        raise error


def _final_state(client: Client) -> State:
    client.finish()
    _check_session(client)
    return client.state("end")


def _compare_after_stop(place: Place, clients: Sequence[Client], final: Sequence[State]) -> None:
    with place.undisturbed(durable=True):
        for client, state in zip(clients, final, strict=True):
            _check_same(client.workload, client.state("again"), state)


def _compare_with_undisturbed(
    place: Place, clients: Sequence[Client], final: Sequence[State], outcome: Outcome
) -> None:
    with place.undisturbed(durable=False):
        for client, state in zip(clients, final, strict=True):
            _check_same(client.workload, state, _undisturbed(place, client))
            outcome.equal += 1


def _undisturbed(place: Place, client: Client) -> State:
    """Return the state that the same changes lead to, having compared every answer."""
    fresh = _client(place, client.workload, "none")
    try:
        fresh.create()
        fresh.advance_to(len(client.answers))
        for told, right in zip(client.answers, fresh.answers, strict=True):
            if told != right:
                raise Violation("different", f"{client.workload.name} was told {told}, not {right}")
        return fresh.state("end")
    finally:
        fresh.close()


def _check_session(client: Client) -> None:
    name, problems = client.workload.name, client.get().json()["problems"]
    if problems:
        raise Violation("other", f"{name} has problems: {problems}")
    told = [answer for answer in client.answers if "loss" in answer]
    for step, right in zip(client.get("history").json()["steps"], told, strict=True):
        if {key: step[key] for key in right} != right:
            raise Violation("different", f"the history of {name} has {step}, not {right}")


def _check_log(place: Place, level: str) -> None:
    """No server may have met an error, or have found anything damaged or different at its start."""
    for line in place.errors.read_text().splitlines():
        if "Traceback" in line or (" curvserve.sessions " in line and level != "snapshot"):
            raise Violation("other", f"{place.errors} has: {line}")


def _check_same(work: Workload, found: State, right: State) -> None:
    if not equal(found[0], right[0]):
        raise Violation("different", f"the tensors of {work.name} are not the undisturbed ones")
    if found[1] != right[1]:
        raise Violation("different", f"{work.name} is {found[1]}, undisturbed {right[1]}")
