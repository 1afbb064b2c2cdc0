"""The workers of one session: placed together, asked together, ended together.

Ray places and watches them, and does nothing again by itself: whether something was done is decided
by the journal of the front process alone.
"""

import asyncio
import logging
import time
import weakref
from collections.abc import Sequence
from math import ceil
from typing import Any
from uuid import uuid4

import ray
from curvserve_client.errors import NoDevice, ProblemError
from ray.util.placement_group import PlacementGroup, placement_group, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from ..models import Model
from ..sessions.executor import StateLost
from ..sessions.jobs import is_divisible
from ..sessions.team import PeerFailed
from . import transfer
from .options import ClusterOptions
from .worker import Answer, Place, Worker

log = logging.getLogger("curvserve.cluster")

_BEGIN = 120.0
"""Seconds in which a process that was asked for has to be there, with everything imported."""

_LOOK = 1.0
"""Most seconds that a thread waits for a placement before it looks whether anybody still does."""


class _Actor(Worker):
    """A worker that Ray runs."""

    def __init__(self, model: Model, device: str, threads: int) -> None:
        transfer.register()
        super().__init__(model, device, threads)

    def where(self) -> Place:
        """Return where this is."""
        node = ray.get_runtime_context().get_node_id()
        ip = ray.util.get_node_ip_address()  # type: ignore[no-untyped-call]  # Ray's has no types
        return self.place(ip, node)


class Group:
    """The workers of one session.

    Attributes:
        session: the session's name.
        execution: how they compute, as the first of them has told last.
        alive: whether nothing is known of the loss of one.
        sharded: whether each keeps slices of what the rule reads and remembers.
        remarks: what is to be told beside of how they compute.
    """

    def __init__(self, session: str, options: ClusterOptions, workers: int, sharded: bool) -> None:
        """Prepare; see `begun`."""
        self.session = session
        self.sharded = sharded
        self.remarks: list[str] = []
        self.execution = ""
        self.alive = True
        self._options = options
        self._workers = workers
        self._bundles: list[PlacementGroup] = []
        self._actors: list[Any] = []
        self._end = weakref.finalize(self, _end, session, self._actors, self._bundles)
        self._end.atexit = False  # they end with this process
        self._places: list[Place] = []
        self._turn = asyncio.Lock()
        self._numbers = 0
        self._dropped: list[int] = []

    @classmethod
    async def begun(
        cls,
        session: str,
        model: Model,
        device: str,
        options: ClusterOptions,
        workers: int,
        sharded: bool,
    ) -> "Group":
        """Return the workers of a session, which have met.

        Args:
            session: its name.
            model: the recipe.
            device: `cpu` or `cuda`.
            options: what each occupies, and where they are.
            workers: how many.
            sharded: whether each keeps slices of what the rule reads and remembers.

        Raises:
            NoDevice: none was free in time.
            StateLost: one was lost before it had begun.
        """
        group = cls(session, options, workers, sharded)
        try:
            await group._begin(await group._place(device), model, device)
        except (StateLost, ProblemError, asyncio.CancelledError):
            group.end()
            raise
        except Exception as error:  # Ray has many, some of them of no type of their own
            group.end()
            raise StateLost(_in_a_line(error)) from error
        return group

    @property
    def workers(self) -> int:
        """How many they are."""
        return self._workers

    def describe(self) -> str:
        """Tell where they are and how they compute."""
        hosts = {place.node: place.host for place in self._places}.values()
        many = "1 worker" if self._workers == 1 else f"{self._workers} workers"
        sliced = ["state in slices"] if self.sharded else []
        told = [f"{many} on {', '.join(hosts)}", *sliced, *self.remarks, self.execution]
        return "; ".join(filter(None, told))

    def places(self) -> list[Place]:
        """Return where the workers are."""
        return list(self._places)

    def new_number(self) -> int:
        """Return a number that names nothing yet."""
        self._numbers += 1
        return self._numbers

    def drop(self, number: int) -> None:
        """Have the workers forget something, with what they are asked next."""
        self._dropped.append(number)

    async def ask(
        self, job: str, at: int, makes: int, *args: Any, first: bool = False
    ) -> list[Answer]:
        """Have every worker do a job, or the first alone, and return their answers in order.

        Args:
            job: see `curvserve.cluster.worker.JOBS`.
            at: the number of the state.
            makes: the number of what is made.
            args: what the job takes; a reference to an object of the cluster for its value.
            first: whether the first one is asked alone.

        Raises:
            ProblemError: what a worker could not do.
            StateLost: one was lost, or did not answer in time; then the group is at its end.
        """
        answers, _ = await self._asked(job, at, makes, args, self._actors[: 1 if first else None])
        return answers

    async def merged(
        self, at: int, batch: Any, samples: int, quantities: Sequence[str], draws: int
    ) -> Answer:
        """Have every worker compute its part of a batch's curvature, and the first all of it.

        The parts go from worker to worker.

        Args:
            at: the number of the state.
            batch: a reference to the batch.
            samples: how many samples it has.
            quantities: names that the engine knows.
            draws: for each sample.

        Raises:
            ProblemError: as `ask`; likewise `StateLost`.
        """
        whole = self._workers == 1 or not is_divisible(quantities)
        actors = self._actors[: 1 if whole else None]
        answers, parts = await self._asked("curvature", at, 0, (batch, quantities, draws), actors)
        if whole:
            return answers[0]
        args = (samples, quantities, draws, *parts)
        return (await self._asked("merge", at, 0, args, self._actors[:1]))[0][0]

    def end(self) -> None:
        """End the workers; what they hold is gone. So does who lets go of the group."""
        self.alive = False
        self._end()

    async def _place(self, device: str) -> PlacementGroup:
        """Occupy devices."""
        options, gpus = self._options, device == "cuda"
        bundle = {"CPU": options.cpus} | ({"GPU": 1.0} if gpus else {})
        bundles: PlacementGroup = placement_group(
            [dict(bundle) for _ in range(self._workers)],
            strategy=options.placement.upper(),
            name=f"curvserve {self.session} {uuid4().hex[:8]}",  # of all servers of the cluster
        )
        self._bundles.append(bundles)
        end = time.monotonic() + options.place_seconds
        while not await asyncio.to_thread(bundles.wait, min(_LOOK, options.place_seconds)):
            if time.monotonic() >= end:
                each = f"{options.cpus:g} CPUs" + (" and a GPU" if gpus else "")
                wanted = "1 worker" if self._workers == 1 else f"{self._workers} workers"
                were = "was" if self._workers == 1 else "were"
                text = f"{wanted} of {each} ({options.placement}) {were} not free within"
                raise NoDevice(f"{text} {options.place_seconds:g} s", retry_after=1.0)
        return bundles

    async def _begin(self, bundles: PlacementGroup, model: Model, device: str) -> None:
        options, actor = self._options, ray.remote(_Actor)
        gpus = 1 if device == "cuda" else 0
        self._actors += [
            actor.options(
                num_cpus=options.cpus,
                num_gpus=gpus,
                max_restarts=0,
                max_task_retries=0,
                scheduling_strategy=PlacementGroupSchedulingStrategy(
                    placement_group=bundles, placement_group_bundle_index=index
                ),
            ).remote(model, device, ceil(options.cpus))
            for index in range(self._workers)
        ]
        self._places = await self._answers([each.where.remote() for each in self._actors], _BEGIN)
        address = self._places[0].address
        seconds = options.worker_seconds
        await self._answers(
            [
                each.join.remote(rank, self._workers, address, seconds, self.sharded)
                for rank, each in enumerate(self._actors)
            ],
            max(seconds, _BEGIN),
        )

    async def _asked(
        self, job: str, at: int, makes: int, args: Sequence[Any], actors: Sequence[Any]
    ) -> tuple[list[Answer], list[Any]]:
        """Return the answers, and the references to them."""
        async with self._turn:
            if not self.alive:
                raise StateLost("its workers are gone")
            everybody = len(actors) == self._workers
            forget, self._dropped = (self._dropped, []) if everybody else ([], self._dropped)
            references = [each.do.remote(job, at, makes, forget, *args) for each in actors]
            answers: list[Answer] = await self._answers(references, self._options.worker_seconds)
        problems = [answer.problem for answer in answers if answer.problem is not None]
        if problems:
            self.drop(makes)
            raise next((p for p in problems if not isinstance(p, PeerFailed)), problems[0])
        self.execution = answers[0].execution
        return answers, references

    async def _answers(self, references: Sequence[Any], seconds: float) -> list[Any]:
        """Return what references are to; where one worker is lost, all are ended."""
        tasks = [asyncio.ensure_future(_value(reference)) for reference in references]
        done, waiting = await asyncio.wait(tasks, timeout=seconds, return_when="FIRST_EXCEPTION")
        errors = [task.exception() for task in tasks if task in done]
        failed = next((error for error in errors if error is not None), None)
        if failed is None and not waiting:
            return [task.result() for task in tasks]
        for task in waiting:
            task.cancel()
        self.end()
        if failed is None:
            raise StateLost(f"a worker did not answer for {seconds:g} s")
        raise StateLost(_in_a_line(failed)) from failed


def _end(session: str, actors: list[Any], bundles: list[PlacementGroup]) -> None:
    try:
        for actor in actors:
            ray.kill(actor, no_restart=True)
        for each in bundles:
            remove_placement_group(each)
    except Exception as error:  # they end with the cluster, then
        log.warning("the workers of %s could not be ended: %s", session, error)


async def _value(reference: Any) -> Any:
    return await reference


def _in_a_line(error: BaseException) -> str:
    """Return what a library says of a failure in many lines: the last one's first sentence."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    said = lines[-1].partition(". ")[0] if lines else ""
    return f"a worker was lost: {type(error).__name__}: {said}"
