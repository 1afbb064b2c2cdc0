"""What curvature costs while a net is trained.

Where a sample's drawn class is its label, its second vector is its gradient's; the more often, the
better the net knows its labels. The curve shows what that is worth: mnist_cnn is trained on the
bundled digits, and stopped at times to time a pass of each contestant on one and the same batch.
"""

from collections.abc import Iterator
from copy import deepcopy
from dataclasses import replace

import torch
from curvserve_client.rules import DiagGGN
from torch import nn

from benchmarks.nets import digits
from benchmarks.options import Options, Result
from curvserve.bench import CONTESTANTS, Case, about, aligned, check, number, timed
from curvserve.engine import evaluate
from curvserve.models.mnist_cnn import network

NAMES = ("gradient", "evaluate", "compiled", "BackPACK", "BackPACK, channels_last")
STOPS = (0, 5, 10, 20, 40, 80, 160, 320, 640, 320, 640)
BATCH = 64
SECONDS = 3.0


def part(options: Options) -> Iterator[Result]:
    """Train, and stop to check and time."""
    torch.set_num_threads(options.threads[0])
    torch.manual_seed(0)
    net, loss = network(), nn.CrossEntropyLoss()
    inputs, labels = digits(1500)
    case = Case("mnist_cnn", network, digits, BATCH)
    kinds = {name: CONTESTANTS[name] for name in NAMES}
    points = []
    for step in range(STOPS[-1] + 1):
        if step in STOPS:
            here = replace(case, build=lambda: deepcopy(net))
            off = check(here, "DiagGGNMC", kinds, options.device).off
            seconds = min(SECONDS, options.seconds)
            times = timed(here, "DiagGGNMC", kinds, options.device, options.rounds, seconds)
            points.append(
                {
                    "step": step,
                    "p_label": _p_label(net),
                    "times": {name: each.median for name, each in times.items()},
                    "off": max(value for value in off.values() if value is not None),
                }
            )
        start = step * BATCH % (len(inputs) - BATCH)
        batch = inputs[start : start + BATCH], labels[start : start + BATCH]
        _step(net, evaluate(net, loss, *batch, seed=step).quantities)
    head = ["step", "mean p(label)", *NAMES, "compiled/BackPACK", "compiled/gradient", "off"]
    threads = options.threads[0]
    table = aligned(head, [_cells(point) for point in points])
    lines = [f"Milliseconds, CPU threads: {threads}", "", *table, ""]
    where = {**about(options.device), "threads": threads, "batch": BATCH}
    yield Result(lines, {"about": where, "points": points})


@torch.no_grad()
def _step(net: nn.Module, found: dict) -> None:
    """Take a step of the rule that a server takes."""
    rule = DiagGGN(lr=0.05, damping=1.0)
    parameters = {name: p.detach() for name, p in net.named_parameters()}
    state = rule.start(parameters)
    after = rule.update(parameters, found, state, loss=0.0, loss_at=lambda at: 0.0)
    for name, p in net.named_parameters():
        p.copy_(after.parameters[name])


@torch.no_grad()
def _p_label(net: nn.Module) -> float:
    """Return the mean probability of the label, over the batch that is timed."""
    inputs, labels = digits(BATCH)
    return float(net(inputs).softmax(1)[torch.arange(BATCH), labels].mean())


def _cells(point: dict) -> list[str]:
    times = point["times"]
    ratios = [times["compiled"] / times[name] for name in ("BackPACK", "gradient")]
    return [
        str(point["step"]),
        number(point["p_label"]),
        *(number(times[name]) for name in NAMES),
        *map(number, ratios),
        number(point["off"], ".0e"),
    ]
