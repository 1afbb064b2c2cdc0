"""A step p - lr * g / (G + damping): BackPACK's in process, ours in process and over HTTP.

The server is a process of its own on the same machine. Before anything is timed, each way takes a
step of the net in float64, from the same parameters, and its change of every parameter is held
against that of BackPACK's plain loop, which is given the classes that the step drew: they come from
a seed that the client knows.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass
from typing import ClassVar

import backpack
import torch
from backpack.extensions import DiagGGNMC
from curvserve_client import Client, RemoteDiagGGNOptimizer
from curvserve_client.rules import DiagGGN
from curvserve_client.types import draw_seed
from torch import Tensor, nn

from benchmarks.options import Options, Result
from benchmarks.served import exact
from curvserve.bench import (
    Timed,
    about,
    aligned,
    default_dtype,
    distance,
    drawing,
    measure,
    number,
)
from curvserve.data import load_digits
from curvserve.engine import channels_last, reproducible
from curvserve.models import Model, resolve
from curvserve.sessions import jobs, steps
from curvserve.sessions.replica import Replica, initial_tensors
from curvserve.sessions.state import SessionState
from tests.server.process import serving

BATCH, CHECKED = 64, 8
LR, LITTLE, DAMPING = 0.05, 1e-6, 1.0  # little, so that the net that is timed stays as it is
CPU = torch.device("cpu")
SEED = 0
PAUSE = 0.01
PEER = "BackPACK"


@dataclass(frozen=True)
class Setting:
    """What every way starts from.

    Attributes:
        model: the recipe.
        address: of a server that has it.
        images: uint8.
        labels: one per image.
        lr: step size.
        device: where server and contestants in process compute; batches start in host memory.
    """

    model: Model
    address: str
    images: Tensor
    labels: Tensor
    lr: float
    device: torch.device

    @property
    def inputs(self) -> Tensor:
        """The images as the net takes them."""
        return self.model.inputs.convert(self.images)

    def start(self) -> dict[str, Tensor]:
        """Return the parameters that a session with this seed has first."""
        return dict(initial_tensors(self.model, SEED)[0])

    def net(self) -> nn.Module:
        """Return a net with these."""
        net = self.model.build()
        net.load_state_dict(self.start())
        return net


class Way(ABC):
    """One way to take steps."""

    name: ClassVar[str]

    def __init__(self, setting: Setting) -> None:
        """Begin at the start."""
        self.setting = setting

    @abstractmethod
    def run(self) -> None:
        """Take one step."""

    def drop(self) -> None:  # noqa: B027  # most have nothing to drop
        """Nothing is left behind."""

    @abstractmethod
    def parameters(self) -> Mapping[str, Tensor]:
        """Return the parameters as they are now."""

    def drawn_by(self) -> int:
        """Return the seed of the last step's draws."""
        return draw_seed(SEED, 0)

    def close(self) -> None:  # noqa: B027  # most hold no connection
        """Let go of connections."""


class Plain(Way):
    """BackPACK's pass, and a loop over the parameters, as its pages have it."""

    name = PEER

    def __init__(self, setting: Setting) -> None:
        """Extend the net."""
        super().__init__(setting)
        self.net = backpack.extend(setting.net().to(setting.device))
        self.loss = backpack.extend(nn.CrossEntropyLoss())
        self.inputs = setting.inputs

    def run(self) -> None:
        """Take one step."""
        self.net.zero_grad()
        inputs, labels = (t.to(self.setting.device) for t in (self.inputs, self.setting.labels))
        with backpack.backpack(DiagGGNMC()):
            self.loss(self.net(inputs), labels).backward()
        with torch.no_grad():
            self.update()

    def update(self) -> None:
        """Change the parameters."""
        for p in self.net.parameters():
            p.sub_(self.setting.lr * p.grad / (p.diag_ggn_mc + DAMPING))

    def parameters(self) -> Mapping[str, Tensor]:
        """Return those of the net."""
        return dict(self.net.named_parameters())


class Tuned(Plain):
    """The same with channels last, and the update by torch's functions for lists of tensors."""

    name = "BackPACK, channels_last, foreach"

    def __init__(self, setting: Setting) -> None:
        """Change the format too."""
        super().__init__(setting)
        self.net.to(memory_format=torch.channels_last)
        self.inputs = channels_last(self.inputs)

    def update(self) -> None:
        """Change the parameters."""
        parameters = list(self.net.parameters())
        scales = torch._foreach_add([p.diag_ggn_mc for p in parameters], DAMPING)
        torch._foreach_addcdiv_(parameters, [p.grad for p in parameters], scales, -self.setting.lr)


class InProcess(Way):
    """The step that a session takes, without its server."""

    name = "served step, in process"

    def __init__(self, setting: Setting) -> None:
        """Make the state of a session."""
        super().__init__(setting)
        rule = DiagGGN(lr=setting.lr, damping=DAMPING)
        parameters, buffers = initial_tensors(setting.model, SEED)
        self.replica = Replica.of(setting.model, setting.device)
        state = SessionState(setting.model.name, SEED, rule, parameters, buffers)
        self.state = jobs.adopt(state, setting.device)
        self.batch = {"inputs": setting.inputs, "targets": setting.labels}

    def run(self) -> None:
        """Take one step."""
        with reproducible():  # as its server is
            self.state, _ = steps.step(self.replica, self.state, self.batch, self.state.rule)

    def parameters(self) -> Mapping[str, Tensor]:
        """Return those of the state."""
        return self.state.parameters


class Fused(Way):
    """One round trip a step."""

    name = "HTTP, step_on"

    def __init__(self, setting: Setting) -> None:
        """Make a session."""
        super().__init__(setting)
        self.client = Client(setting.address)
        rule = DiagGGN(lr=setting.lr, damping=DAMPING)
        self.session = self.client.create_session(setting.model.name, seed=SEED, rule=rule)
        self.inputs = setting.inputs
        self.prepare()

    def prepare(self) -> None:
        """Make the optimizer."""
        self.optimizer = RemoteDiagGGNOptimizer(self.session.parameters())

    def run(self) -> None:
        """Take one step."""
        self.optimizer.step_on(self.inputs, self.setting.labels)

    def parameters(self) -> Mapping[str, Tensor]:
        """Fetch them."""
        return self.session.pull()

    def close(self) -> None:
        """End the session and the connection."""
        self.client.delete_session(self.session.name)
        self.client.close()


class Bytes(Fused):
    """The same, the images sent as bytes."""

    name = "HTTP, step_on, images as bytes"

    def prepare(self) -> None:
        """Leave the images as they are."""
        super().prepare()
        self.inputs = self.setting.images


class Halves(Fused):
    """An ordinary loop: two round trips, weights and curvature stay there."""

    name = "HTTP, loss and step"

    def run(self) -> None:
        """Take one step."""
        self.optimizer.zero_grad()
        self.session.loss(self.inputs, self.setting.labels).backward()
        self.optimizer.step()


class Mirrored(Fused):
    """A mirror: weights go there and gradient and curvature come back at every step."""

    name = "HTTP, mirror"

    def prepare(self) -> None:
        """Make a net here."""
        self.net = self.setting.net()
        self.remote = self.session.mirror(self.net)
        options = {"lr": self.setting.lr, "damping": DAMPING}
        self.optimizer = RemoteDiagGGNOptimizer(self.net.parameters(), **options)
        self.version = 0

    def run(self) -> None:
        """Take one step."""
        self.optimizer.zero_grad()
        self.remote.loss(self.inputs, self.setting.labels).backward()
        self.version = self.session.version
        self.optimizer.step()

    def parameters(self) -> Mapping[str, Tensor]:
        """Return those of the net here."""
        return dict(self.net.named_parameters())

    def drawn_by(self) -> int:
        """The weights that were sent may have made a version."""
        return draw_seed(SEED, self.version)


WAYS: tuple[type[Way], ...] = (Plain, Tuned, InProcess, Fused, Bytes, Halves, Mirrored)


def check_steps(
    address: str,
    ways: tuple[type[Way], ...] = WAYS,
    device: torch.device = CPU,
) -> dict[str, float | None]:
    """Return how far each way's step is off that of BackPACK's loop, relative to its length.

    Args:
        address: of a server of `benchmarks.served:exact`.
        ways: what is checked.
        device: the server's.

    Raises:
        WrongNumbers: it is more than rounding.
    """
    images, labels = (t[:CHECKED] for t in load_digits("train"))
    setting = Setting(exact(), address, images, labels, LR, device)
    start = setting.start()  # before the default type changes, which nets are drawn in
    off: dict[str, float | None] = {PEER: None}
    for kind in ways:
        if kind is Plain:
            continue
        way, reference = kind(setting), Plain(setting)
        with closing(way), default_dtype(torch.float64):
            with drawing(draw_seed(SEED, 0)):
                way.run()
            with drawing(way.drawn_by()):
                reference.run()
            moved, wanted = (_moved(each, start) for each in (way, reference))
        off[kind.name] = distance({"step": moved}, {"step": wanted}, f"{kind.name}, one step")
    return off


def part(options: Options) -> Iterator[Result]:
    """Check all ways, then time them, with each number of threads."""
    images, labels = (t[: options.batch or BATCH] for t in load_digits("train"))
    lines: list[str] = []
    tables = []
    device = options.device
    for threads in options.threads if device.type == "cpu" else options.threads[:1]:
        torch.set_num_threads(threads)
        arguments: tuple[str, ...] = ("--model", "mnist_cnn", "--model", "benchmarks.served:exact")
        arguments += ("--device", str(device), "--log-level", "warning")
        with serving(*arguments, OMP_NUM_THREADS=str(threads)) as server:
            off = check_steps(server.address, device=device)
            model = resolve("mnist_cnn")
            setting = Setting(model, server.address, images, labels, LITTLE, device)
            ways = {kind.name: kind(setting) for kind in WAYS}
            times = measure(ways, options.rounds, "steps", device, options.seconds, PAUSE)
            for way in ways.values():
                way.close()
        head = ["a step", "ms", f"over {PEER}'s", "off"]
        rows = [_cells(name, times, off[name]) for name in times]
        lines += [f"CPU threads, here and there: {threads}", "", *aligned(head, rows), ""]
        medians = {name: each.median for name, each in times.items()}
        tables.append({"threads": threads, "batch": len(labels), "times": medians, "off": off})
    yield Result(lines, {"about": about(device), "tables": tables})


def _moved(way: Way, start: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: p.detach().cpu() - start[name] for name, p in way.parameters().items()}


def _cells(name: str, times: Mapping[str, Timed], off: float | None) -> list[str]:
    own = times[name].median
    return [name, number(own), number(own / times[PEER].median), number(off, ".0e")]
