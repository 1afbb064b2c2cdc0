"""A step on workers: its time over their number, the memory of each, what a model of costs needs.

The workers are Ray actors of this machine, of one thread each, and the process that asks them is
beside them on the same cores. So no more workers are timed than there are cores; memory is measured
with more. The all-reduce is timed on actors that do nothing else, joined as workers are.
"""

import asyncio
import ctypes
import gc
import os
import socket
import time
from collections.abc import (
    AsyncIterator,
    Awaitable,
    Callable,
    Coroutine,
    Iterator,
    Mapping,
    Sequence,
)
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import ray
import torch
import torch.distributed as dist
from curvserve_client.rules import Adam, DiagGGN, Rule
from torch import Tensor, nn
from tqdm import tqdm

from benchmarks.nets import cifar, digits
from benchmarks.options import Options, Result
from curvserve.bench import Timed, about, aligned, distance, number
from curvserve.cluster import joining
from curvserve.cluster.executor import RayExecutor
from curvserve.cluster.group import Group
from curvserve.cluster.worker import Answer, Worker
from curvserve.memory import keep_freed
from curvserve.models import Model, resolve
from curvserve.models.mlp import network as mlp
from curvserve.sessions import Durability, InlineExecutor, Sessions, SessionState
from curvserve.sessions.executor import Executor
from curvserve.sessions.team import DistributedTeam
from tests.cluster.both import CPU, first_state, options
from tests.sessions.living import Patient, folder, request

Batch = Mapping[str, Tensor]

WORKERS = (1, 2, 4)
RULE = DiagGGN(lr=1e-6, damping=1.0)  # little, so that the net that is timed stays as it is
CHECKED, CHECKED_STEPS = 8, 3
PAUSE = 0.01
WARM_UP = 2
LEAST = 3
INLINE = "inline"

WIDTH = 6144
"""Of the MLP whose memory is measured: 24 million parameters."""

MEMORY_BATCH, MEMORY_STEPS = 8, 4
MEMORY = ((1, False), (2, False), (2, True), (4, False), (4, True))
"""How many workers, and whether each keeps slices."""

LINE_MB = (1.0, 32.0)
"""The sizes that a line for the all-reduce goes through."""

BEGINNINGS = 3


@dataclass(frozen=True)
class Net:
    """What is stepped.

    Attributes:
        name: as in other tables.
        model: the recipe.
        data: returns inputs and targets of so many samples.
        batch: samples of a step.
    """

    name: str
    model: Model
    data: Callable[[int], tuple[Tensor, Tensor]]
    batch: int

    def given(self, samples: int) -> dict[str, Tensor]:
        """Return a batch in the model's dtype."""
        inputs, targets = self.data(samples)
        return {"inputs": inputs.to(self.model.inputs.dtype), "targets": targets}

    def exact(self) -> "Net":
        """Return it in float64."""
        model, inputs = self.model, replace(self.model.inputs, dtype=torch.float64, conversions={})
        build = partial(_double, model.build)
        return replace(self, model=replace(model, build=build, inputs=inputs))


def nets() -> list[Net]:
    """Return what is timed: much to compute, and little."""
    return [
        Net("3c3d", resolve("cifar_3c3d"), cifar, 128),
        Net("mnist_cnn", resolve("mnist_cnn"), digits, 64),
    ]


class Stepping:
    """The steps of one session."""

    def __init__(self, executor: Executor, state: SessionState) -> None:
        """Begin at a state that the executor has adopted."""
        self.executor, self.state = executor, state

    async def run(self, batch: Batch, rule: Rule = RULE) -> None:
        """Take a step."""
        self.state, _ = await self.executor.step(self.state, batch, rule)

    async def parameters(self) -> dict[str, Tensor]:
        """Return the parameters as they are now."""
        return dict(await self.executor.parameters(self.state))


@asynccontextmanager
async def everybody(model: Model, workers: Sequence[int]) -> AsyncIterator[dict[str, Stepping]]:
    """Give the contestants, each with a session of its own: this process, and groups of workers."""
    models, devices = {model.name: model}, {model.name: CPU}
    here = InlineExecutor(models, devices)
    executors: dict[str, Executor] = {INLINE: here}
    executors |= {str(count): RayExecutor(models, devices, options(count)) for count in workers}
    found: dict[str, Stepping] = {}
    try:
        for name, executor in executors.items():
            state = await executor.adopt(first_state(model, RULE), f"workers {name}")
            found[name] = Stepping(executor, state)
        yield found
    finally:
        for each in found.values():
            each.executor.release(each.state)
        here.close(60.0)


async def check_steps(net: Net, workers: Sequence[int]) -> dict[str, float]:
    """Return how far workers are off this process after some steps in float64, of their length.

    Args:
        net: what is stepped.
        workers: how many.

    Raises:
        WrongNumbers: it is more than rounding.
    """
    net, rule = net.exact(), replace(RULE, lr=0.05)
    start, batch = first_state(net.model).parameters, net.given(min(net.batch, CHECKED))
    moved = {}
    async with everybody(net.model, workers) as contestants:
        for name, each in contestants.items():
            for _ in range(CHECKED_STEPS):
                await each.run(batch, rule)
            after = await each.parameters()
            moved[name] = {key: after[key] - tensor for key, tensor in start.items()}
    wanted = {"steps": moved.pop(INLINE)}
    return {
        name: distance({"steps": own}, wanted, f"{net.name}, {name} workers")
        for name, own in moved.items()
    }


async def timed(net: Net, workers: Sequence[int], rounds: int, seconds: float) -> dict[str, Timed]:
    """Return the times of a step, of all contestants in turns.

    No pass is left out: where another process takes a core, it is one of ours. All is awaited in
    one running loop, as in a server.
    """
    batch = net.given(net.batch)
    async with everybody(net.model, workers) as contestants:
        times: dict[str, list[tuple[float, bool]]] = {name: [] for name in contestants}
        began = time.perf_counter()
        for turn in tqdm(range(-WARM_UP, rounds), desc=net.name, leave=False, disable=None):
            if turn >= LEAST and time.perf_counter() - began > seconds:
                break
            for name in list(contestants)[:: 1 if turn % 2 else -1]:
                await asyncio.sleep(PAUSE)
                spent = await _awaited(contestants[name].run(batch))
                if turn >= 0:
                    times[name].append((spent, False))
    return {name: Timed.of(values) for name, values in times.items()}


class Peer:
    """An actor that computes nothing, joined with others as workers are."""

    def __init__(self, rank: int, workers: int, address: str) -> None:
        """Meet the others."""
        torch.set_num_threads(1)
        self.team = DistributedTeam(rank, workers, address, CPU, 60.0)

    def nothing(self, batch: Batch | None = None) -> None:
        """Return at once."""

    def reduced(self, elements: int, rounds: int) -> list[float]:
        """Return the milliseconds of all-reduces of so many numbers in float32."""
        buffer, found = torch.zeros(elements), []
        for turn in range(-WARM_UP, rounds):
            dist.barrier()
            began = time.perf_counter()
            dist.all_reduce(buffer)
            if turn >= 0:
                found.append(1000 * (time.perf_counter() - began))
        return found


@contextmanager
def peers(workers: int) -> Iterator[list[Any]]:
    """Give actors that have met, for a block."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    kind = ray.remote(Peer)
    found = [kind.options(num_cpus=0.1).remote(rank, workers, address) for rank in range(workers)]
    try:
        ray.get([each.nothing.remote() for each in found])
        yield found
    finally:
        for each in found:
            ray.kill(each)


def all_reduce(actors: Sequence[Any], elements: int, rounds: int) -> float:
    """Return the milliseconds of an all-reduce: the median of the slower one's."""
    each = ray.get([actor.reduced.remote(elements, rounds) for actor in actors])
    return median(map(max, zip(*each, strict=True)))


def reduced_elements(net: Net) -> int:
    """Return how many numbers the workers of a step add up, metrics and losses left out."""
    state = first_state(net.model, RULE)
    size = sum(tensor.numel() for tensor in state.parameters.values())
    return size * len(RULE.quantities(state.rule_state))


async def held(workers: int, sharded: bool, width: int) -> dict[str, Any]:
    """Return what each worker has before and after some steps of Adam, in megabytes.

    Workers keep the memory that a step has freed, so `after` is what a step takes at most; then
    they are told to give back what is free, and `between` is what they hold between steps.

    Args:
        workers: how many.
        sharded: whether each keeps slices of what the rule remembers.
        width: of the MLP.
    """
    model = replace(resolve("mlp"), name="wide", build=partial(mlp, width))
    rule = Adam(lr=1e-4)
    group = await Group.begun("memory", model, "cpu", options(workers), workers, sharded)
    try:
        await _trim(group)
        before = [private(pid) for pid in [place.pid for place in group.places()]]
        state, at = first_state(model, rule), group.new_number()
        parameters = sum(tensor.nbytes for tensor in state.parameters.values())
        await group.ask("adopt", 0, at, ray.put(state))
        del state
        images, labels = digits(MEMORY_BATCH)
        batch = ray.put({"inputs": images, "targets": labels})
        for _ in range(MEMORY_STEPS):
            makes = group.new_number()
            answers = await group.ask("step", at, makes, batch, rule)
            group.drop(at)
            at = makes
        after = [private(pid) for pid in [place.pid for place in group.places()]]
        await _trim(group)
        between = [private(pid) for pid in [place.pid for place in group.places()]]
    finally:
        group.end()
    return {
        "workers": workers,
        "slices": sharded,
        "parameters": parameters / 1e6,
        "rule": [_remembered(answer) / 1e6 for answer in answers],
        "before": before,
        "after": after,
        "between": between,
    }


async def _trim(group: Group) -> None:
    """Have workers give back memory that is free."""
    await asyncio.gather(*(_value(each.__ray_call__.remote(_trimmed)) for each in group._actors))


def _trimmed(worker: Worker) -> None:
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)


def private(pid: int) -> float:
    """Return the megabytes that a process shares with nobody (USS)."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    own = (line for line in lines if line.startswith(("Private_Clean:", "Private_Dirty:")))
    return sum(1024 * int(line.split()[1]) for line in own) / 1e6


async def begun(model: Model, workers: int) -> float:
    """Return the seconds after which the workers of a session are there."""
    began = time.perf_counter()
    group = await Group.begun("begun", model, "cpu", options(workers), workers, sharded=False)
    spent = time.perf_counter() - began
    group.end()
    return spent


async def woken(net: Net, workers: int, times: int) -> list[float]:
    """Return the seconds of the first call of a parked session, whose state is in a data folder."""
    models, devices = {net.model.name: net.model}, {net.model.name: CPU}
    executor = RayExecutor(models, devices, options(workers))
    batch, found = net.given(net.batch), []

    async def given() -> Batch:
        return batch

    with TemporaryDirectory() as path:
        durability = Durability(folder(Path(path)), executor.to_host)
        sessions = Sessions(models, executor, durability)
        try:
            await sessions.recover()
            session = await sessions.create(net.model.name, RULE)
            await session.step(request(), given, {})
            for _ in range(times):
                await session.park(0.0)
                began = time.perf_counter()
                await session.evaluate(given, Patient())
                found.append(time.perf_counter() - began)
            await sessions.delete(session.name)
        finally:
            durability.close()
    return found


def part(options: Options) -> Iterator[Result]:
    """Check and time steps, measure memory, then what a model of costs needs."""
    os.environ["RAY_AUTH_MODE"] = "disabled"  # nobody else can reach it
    keep_freed()  # as a server and its workers do
    torch.set_num_threads(1)
    joining.join(None)
    try:
        with asyncio.Runner() as runner:
            lines: list[str] = []
            figures: dict[str, Any] = {"about": {**about(CPU), "threads": 1}}
            for name, (measure, told) in PIECES.items():
                figures[name] = runner.run(measure(options))
                lines = [*lines, *told(figures[name]), ""]
                yield Result(lines, figures)
    finally:
        ray.shutdown()


async def _steps(options: Options) -> dict[str, Any]:
    cores = len(os.sched_getaffinity(0))
    workers = [count for count in WORKERS if count <= cores]
    found: list[dict[str, Any]] = []
    for net in nets():
        if options.nets and net.name not in options.nets:
            continue
        net = replace(net, batch=options.batch or net.batch)
        off = await check_steps(net, workers)
        times = await timed(net, workers, options.rounds, options.seconds)
        elements = reduced_elements(net)
        alone = times[INLINE].median
        for name, each in times.items():
            found.append(
                {
                    "net": net.name,
                    "batch": net.batch,
                    "workers": name,
                    "ms": each.median,
                    "quartiles": [each.low, each.high],
                    "rounds": each.rounds,
                    "speed_up": alone / each.median,
                    "beside_inline": each.median - alone if name == "1" else None,
                    "all_reduce": _reduce_of(int(name), elements) if name != INLINE else None,
                    "all_reduce_mb": 4 * elements / 1e6,
                    "off": off.get(name),
                }
            )
    left_out = [count for count in WORKERS if count > cores]
    return {"rows": found, "left_out": left_out, "cores": cores}


def steps_lines(figures: dict[str, Any]) -> list[str]:
    """Return the table of steps, and which workers were not timed."""
    head = ["net, batch", "workers", "ms", "over inline", "1 worker less inline, ms"]
    head += ["all-reduce, ms", "its share", "of MB", "off"]
    lines = ["Milliseconds of a step, a thread each", ""]
    lines += aligned(head, [_step_cells(row) for row in figures["rows"]])
    left_out = ", ".join(map(str, figures["left_out"]))
    if left_out:
        lines += ["", f"not timed, as there are {figures['cores']} cores: {left_out} workers"]
    return lines


def _reduce_of(workers: int, elements: int) -> float | None:
    if workers == 1:
        return None  # nobody to talk to
    with peers(workers) as actors:
        return all_reduce(actors, elements, 20)


def _step_cells(row: dict[str, Any]) -> list[str]:
    reduce = row["all_reduce"]
    return [
        f"{row['net']}, {row['batch']}",
        row["workers"],
        number(row["ms"], ".1f"),
        number(row["speed_up"]),
        number(row["beside_inline"], ".1f"),
        number(reduce),
        number(None if reduce is None else reduce / row["ms"]),
        number(None if reduce is None else row["all_reduce_mb"]),
        number(row["off"], ".0e"),
    ]


async def _memory(options: Options) -> list[dict[str, Any]]:
    sizes = tqdm(MEMORY, desc="memory", leave=False, disable=None)
    return [await held(*each, WIDTH) for each in sizes]


def memory_lines(rows: list[dict[str, Any]]) -> list[str]:
    """Return the table of memory."""
    head = ["workers", "keep", "parameters", "rule", "both", "before", "between steps", "at most"]
    head += ["between less before", "at most less before"]
    lines = ["Memory of a worker of its own, MB: of the one that has most", ""]
    return [*lines, *aligned(head, [_memory_cells(row) for row in rows])]


def _memory_cells(row: dict[str, Any]) -> list[str]:
    rule, before, between, most = (
        max(row[each]) for each in ("rule", "before", "between", "after")
    )
    taken = (
        max(a - b for a, b in zip(row[each], row["before"], strict=True))
        for each in ("between", "after")
    )
    own = row["parameters"]
    sizes = (own, rule, own + rule, before, between, most, *taken)
    kept = "slices" if row["slices"] else "all"
    return [str(row["workers"]), kept, *(number(size, ".0f") for size in sizes)]


async def _constants(options: Options) -> dict[str, Any]:
    net = next(net for net in nets() if net.name == "mnist_cnn")
    batch, rounds = net.given(net.batch), max(options.rounds, LEAST)
    with peers(2) as actors:
        line = [all_reduce(actors, round(mb * 1e6 / 4), rounds) for mb in LINE_MB]
        front = {
            "an empty job, 1 worker, ms": await _often(lambda: _asked(actors[:1]), rounds),
            "an empty job, 2 workers, ms": await _often(lambda: _asked(actors), rounds),
            "a batch of 200 KB put, ms": await _often(lambda: _put(batch), rounds),
            "put, and an empty job given it, 2 workers, ms": await _often(
                lambda: _asked(actors, batch), rounds
            ),
        }
    slope = (line[1] - line[0]) / (LINE_MB[1] - LINE_MB[0])
    found = {
        **{
            f"an all-reduce of {mb:g} MB, 2 workers, ms": ms
            for mb, ms in zip(LINE_MB, line, strict=True)
        },
        "its latency, ms": line[0] - slope * LINE_MB[0],
        "MB/s": 1000 / slope,
        **front,
    }
    for workers in (1, 2):
        beginnings = [await begun(net.model, workers) for _ in range(BEGINNINGS)]
        found[f"a group of {workers} begun, s"] = median(beginnings)
        found[f"a parked session of {workers} woken, s"] = median(
            await woken(net, workers, BEGINNINGS)
        )
    return found


def constants_lines(figures: dict[str, float]) -> list[str]:
    """Return the table of constants."""
    rows = [[name, number(value)] for name, value in figures.items()]
    return ["What a model of costs needs", "", *aligned(["what", "is"], rows)]


async def _asked(actors: Sequence[Any], batch: Batch | None = None) -> None:
    given = () if batch is None else (await _put(batch),)
    await asyncio.gather(*(_value(actor.nothing.remote(*given)) for actor in actors))


async def _put(batch: Batch) -> Any:
    return await asyncio.to_thread(ray.put, batch)  # as the executor does


async def _value(reference: Any) -> Any:
    return await reference


async def _often(work: Callable[[], Awaitable[Any]], rounds: int) -> float:
    """Return the median milliseconds of work."""
    spent = [await _awaited(work()) for _ in range(WARM_UP + rounds)]
    return median(spent[WARM_UP:])


async def _awaited(work: Awaitable[Any]) -> float:
    """Return the milliseconds of work."""
    began = time.perf_counter()
    await work
    return 1000 * (time.perf_counter() - began)


def _remembered(answer: Answer) -> int:
    """Return the bytes of what a worker's rule remembers."""
    assert answer.after is not None
    slots = answer.after.rule_state.tensors.values()
    return sum(tensor.numel() * tensor.itemsize for slot in slots for tensor in slot.values())


def _double(build: Callable[[], nn.Module]) -> nn.Module:
    return build().double()


Measure = Callable[[Options], Coroutine[Any, Any, Any]]
Told = Callable[[Any], list[str]]

PIECES: dict[str, tuple[Measure, Told]] = {
    "steps": (_steps, steps_lines),
    "memory": (_memory, memory_lines),
    "constants": (_constants, constants_lines),
}
