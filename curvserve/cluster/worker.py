"""What a worker process does: it holds states of one session, and computes its part of each batch.

Plain Python, of which Ray makes an actor. A worker does one job after another, in the order in
which they were asked for, the same as all others of its group.
"""

import os
import socket
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from curvserve_client.errors import ProblemError
from curvserve_client.rules import RuleState
from curvserve_client.types import CurvatureResult

from ..engine import reproducible
from ..memory import keep_freed
from ..models import Model
from ..sessions import jobs, steps
from ..sessions.pending import Pending
from ..sessions.replica import Replica
from ..sessions.snapshots import snapshot_of
from ..sessions.state import SessionState, Tensors
from ..sessions.storage import digest
from ..sessions.team import DistributedTeam, PeerFailed, span


@dataclass(frozen=True)
class Place:
    """Where a worker is.

    Attributes:
        host: the machine's name.
        node: the cluster's name of it.
        pid: the process.
        address: `host:port`, free at the moment, where the others can reach it.
    """

    host: str
    node: str
    pid: int
    address: str


@dataclass(frozen=True)
class After:
    """A state that a job has made, without its tensors.

    Attributes:
        rule_state: its numbers, and the outlines of its tensors.
        digest: of all that every worker of the group has.
        slices: digest of what this worker alone has; empty where that is nothing.
    """

    rule_state: RuleState
    digest: str
    slices: str = ""


@dataclass(frozen=True)
class Answer:
    """What came of a job.

    Attributes:
        value: what the caller is told.
        after: the state that was made, where one was.
        problem: why there is nothing; `PeerFailed` where another worker knows.
        execution: how batches are computed.
    """

    value: Any = None
    after: After | None = None
    problem: ProblemError | PeerFailed | None = None
    execution: str = ""


class Worker:
    """Holds states and pending gradients under numbers that the front process chooses."""

    def __init__(self, model: Model, device: str, threads: int) -> None:
        """Begin with nothing.

        Args:
            model: the recipe.
            device: `cpu` or `cuda`.
            threads: threads of a CPU to compute with.
        """
        keep_freed()
        torch.set_num_threads(threads)
        self._model, self._device = model, torch.device(device)
        self._settings = ExitStack()  # for as long as the process is there
        if self._device.type == "cuda":
            self._settings.enter_context(reproducible())
        self._states: dict[int, SessionState] = {}
        self._pending: dict[int, Pending] = {}
        self._replica: Replica | None = None

    def place(self, ip: str, node: str) -> Place:
        """Return where this is.

        Args:
            node: the cluster's name of the node.
            ip: the node's address, by which the others can reach it.
        """
        with socket.socket() as free:
            free.bind(("", 0))
            port = free.getsockname()[1]
        host = f"[{ip}]" if ":" in ip else ip
        return Place(socket.gethostname(), node, os.getpid(), f"{host}:{port}")

    def join(self, rank: int, workers: int, address: str, seconds: float, sharded: bool) -> None:
        """Build the model, and meet the others where there are any.

        Args:
            rank: which worker this is.
            workers: how many they are.
            address: where the first listens.
            seconds: after which one that is missing in a call is given up.
            sharded: whether each keeps slices of what the rule reads and remembers.
        """
        team = None
        if workers > 1:
            team = DistributedTeam(rank, workers, address, self._device, seconds)
        self._replica = Replica.of(self._model, self._device, team=team, sharded=sharded)

    def do(self, job: str, at: int, makes: int, forget: Sequence[int], *args: Any) -> Answer:
        """Do a job of `JOBS`.

        Args:
            job: its name.
            at: the number of the state to do it at.
            makes: the number of what it makes, if it makes something.
            forget: numbers of what is not needed any more.
            args: what it takes beside.
        """
        for number in forget:
            self._states.pop(number, None)
            self._pending.pop(number, None)
        try:
            answer = JOBS[job](self, at, makes, *args)
        except (ProblemError, PeerFailed) as problem:
            return Answer(problem=problem)
        return Answer(answer.value, answer.after, execution=self.replica.describe())

    @property
    def replica(self) -> Replica:
        """The model, built."""
        assert self._replica is not None  # `join` comes first
        return self._replica

    def state(self, number: int) -> SessionState:
        """Return a state."""
        return self._states[number]

    def pending(self, number: int | None) -> Pending | None:
        """Return a pending gradient."""
        return None if number is None else self._pending[number]

    def keep(self, number: int, pending: Pending) -> None:
        """Keep a pending gradient."""
        self._pending[number] = pending

    def made(self, number: int, state: SessionState, value: Any = None) -> Answer:
        """Keep a state that a job has made, and return the answer."""
        self._states[number] = state
        on_host = state.of(jobs.host)
        outline = state.outline().rule_state
        if self.replica.slices is None:
            return Answer(value, After(outline, _digest(on_host)))
        shared = _digest(on_host.remembering({}))
        return Answer(value, After(outline, shared, digest(on_host.rule_state.tensors)))


def _digest(state: SessionState) -> str:
    snapshot = snapshot_of(state)
    return digest(snapshot.tensors, snapshot.scalars)


def _adopt(worker: Worker, at: int, makes: int, state: SessionState) -> Answer:
    adopted, slices = jobs.adopt(state, worker.replica.device), worker.replica.slices
    return worker.made(makes, adopted if slices is None else slices.adopted(adopted))


def _load(worker: Worker, at: int, makes: int, tensors: Tensors) -> Answer:
    return worker.made(makes, jobs.load(worker.replica, worker.state(at), tensors))


def _evaluate(worker: Worker, at: int, makes: int, batch: Tensors) -> Answer:
    return Answer(jobs.evaluate(worker.replica, worker.state(at), batch))


def _curvature(
    worker: Worker, at: int, makes: int, batch: Tensors, quantities: Sequence[str], draws: int
) -> Answer:
    """A whole batch, or this worker's part of it; what cannot be divided the first computes."""
    replica, state = worker.replica, worker.state(at)
    if replica.team is None or not jobs.is_divisible(quantities):
        return Answer(jobs.curvature(replica.alone(), state, batch, quantities, draws))
    own = span(len(batch["inputs"]), replica.team.rank, replica.team.workers)
    if not own:
        return Answer()
    return Answer(jobs.curvature_part(replica, state, batch, quantities, draws, own))


def _merge(
    worker: Worker,
    at: int,
    makes: int,
    samples: int,
    quantities: Sequence[str],
    draws: int,
    *answers: Answer,
) -> Answer:
    """What all workers' parts are together."""
    parts = [answer.value for answer in answers if answer.value is not None]
    with jobs.told_as_problems(), torch.no_grad():
        found: CurvatureResult = jobs.curvature_of_parts(
            worker.state(at), parts, samples, quantities, draws
        )
    return Answer(found)


def _step(worker: Worker, at: int, makes: int, batch: Tensors, rule: Any) -> Answer:
    return worker.made(makes, *steps.step(worker.replica, worker.state(at), batch, rule))


def _forward_backward(
    worker: Worker, at: int, makes: int, batch: Tensors, before: int | None, reduction: Any
) -> Answer:
    state, joined = worker.state(at), worker.pending(before)
    pending, result = steps.forward_backward(worker.replica, state, batch, joined, reduction)
    worker.keep(makes, pending)
    return Answer(result)


def _optim_step(
    worker: Worker, at: int, makes: int, pending: int, groups: Any, scales: Mapping[str, float]
) -> Answer:
    present = worker.pending(pending)
    assert present is not None
    return worker.made(
        makes, *steps.optim_step(worker.replica, worker.state(at), present, groups, scales)
    )


def _parameters(worker: Worker, at: int, makes: int) -> Answer:
    return Answer(jobs.host(worker.state(at).parameters))


def _to_host(worker: Worker, at: int, makes: int) -> Answer:
    """The state; of all workers but the first, the slices that it alone has."""
    state, team = worker.state(at).of(jobs.host), worker.replica.team
    first = team is None or team.rank == 0
    return Answer(state if first else state.rule_state.tensors)


JOBS: Mapping[str, Callable[..., Answer]] = {
    "adopt": _adopt,
    "load": _load,
    "evaluate": _evaluate,
    "curvature": _curvature,
    "merge": _merge,
    "step": _step,
    "forward_backward": _forward_backward,
    "optim_step": _optim_step,
    "parameters": _parameters,
    "to_host": _to_host,
}
"""What can be asked of a worker: a function of it, the state's number, and the new one's."""
