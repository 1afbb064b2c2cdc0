"""How time grows: with batch, classes, draws, width, image size and parameters.

The exponent is the slope of log time over log size at the larger half of the sizes: below, what a
pass costs whatever it computes makes every curve flat.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import nn
from tqdm import tqdm

from benchmarks.nets import digits, mlp, noise
from benchmarks.options import Options, Result
from curvserve.bench import CONTESTANTS, Case, about, aligned, check, number, timed
from curvserve.models.mnist_cnn import network

NAMES = ("gradient", "compiled", "BackPACK")
SECONDS = 1.5
"""For all rounds of a size."""


def convolutions(width: int) -> nn.Module:
    """Return two convolutions and a mean, for images of any size."""
    return nn.Sequential(
        nn.Conv2d(3, width, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(width, width, 3, padding=1), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, 10),
    )  # fmt: skip


@dataclass(frozen=True)
class Axis:
    """What grows.

    Attributes:
        name: its name.
        what: the net and the quantity, for people.
        quantity: the quantity.
        points: size and case, ascending.
    """

    name: str
    what: str
    quantity: str
    points: Sequence[tuple[int, Case]]


def axes() -> Iterator[Axis]:
    """Yield what is measured."""
    cnn = Case("mnist_cnn", network, digits, 64)
    sizes = (8, 16, 32, 64, 128, 256, 512)
    points = [(size, replace(cnn, batch=size)) for size in sizes]
    yield Axis("batch", "mnist_cnn, DiagGGNMC", "DiagGGNMC", points)

    points = [(count, replace(cnn, mc_samples=count)) for count in (1, 2, 4, 8, 16)]
    yield Axis("mc_samples", "mnist_cnn, batch 64, DiagGGNMC", "DiagGGNMC", points)

    points = [
        (count, Case("mlp", partial(mlp, 256, count), partial(noise, (1, 28, 28), count), 32))
        for count in (10, 30, 100, 300, 1000)
    ]
    yield Axis("classes", "784-256-128-classes, batch 32, DiagGGNExact", "DiagGGNExact", points)

    points = [
        (width, Case("convolutions", partial(convolutions, width), _images(16), 64))
        for width in (8, 16, 32, 64, 128)
    ]
    yield Axis("width", "two convolutions, 16x16, batch 64, DiagGGNMC", "DiagGGNMC", points)

    points = [
        (side, Case("convolutions", partial(convolutions, 16), _images(side), 64))
        for side in (8, 16, 32, 48, 64)
    ]
    yield Axis("side", "two convolutions of 16, batch 64, DiagGGNMC", "DiagGGNMC", points)

    points = [
        (_parameters(width), Case("mlp", partial(mlp, width), digits, 64))
        for width in (64, 128, 256, 512, 1024, 2048)
    ]
    yield Axis("parameters", "784-w-w/2-10, batch 64, DiagGGNMC", "DiagGGNMC", points)


def exponent(sizes: Sequence[float], times: Sequence[float]) -> float:
    """Return the slope of log time over log size, by least squares over the larger half."""
    start = min(len(sizes) // 2, len(sizes) - 2)
    x = [math.log(size) for size in sizes[start:]]
    y = [math.log(time) for time in times[start:]]
    middle, height = sum(x) / len(x), sum(y) / len(y)
    rise = sum((a - middle) * (b - height) for a, b in zip(x, y, strict=True))
    return rise / sum((a - middle) ** 2 for a in x)


def part(options: Options) -> Iterator[Result]:
    """Check the smallest size of each, time all, and fit."""
    torch.set_num_threads(options.threads[0])
    found = []
    for axis in axes():
        kinds = {name: CONTESTANTS[name] for name in NAMES}
        check(axis.points[0][1], axis.quantity, kinds, options.device)
        times: dict[str, list[float]] = {name: [] for name in NAMES}
        for _, case in tqdm(axis.points, desc=axis.name, leave=False, disable=None):
            seconds = min(SECONDS, options.seconds)
            medians = timed(case, axis.quantity, kinds, options.device, options.rounds, seconds)
            for name, each in medians.items():
                times[name].append(each.median)
        sizes = [size for size, _ in axis.points]
        exponents = {name: exponent(sizes, values) for name, values in times.items()}
        found.append(
            {
                "axis": axis.name,
                "what": axis.what,
                "sizes": sizes,
                "times": times,
                "exponents": exponents,
                "over_peer": [
                    ours / peer
                    for ours, peer in zip(times["compiled"], times["BackPACK"], strict=True)
                ],
            }
        )
    head = ["grows", "from", "to", "of", *NAMES, "compiled/BackPACK"]
    threads = options.threads[0]
    table = aligned(head, [_cells(each) for each in found])
    lines = [f"Exponents, CPU threads: {threads}", "", *table, ""]
    yield Result(lines, {"about": {**about(options.device), "threads": threads}, "axes": found})


def _images(side: int) -> partial:
    return partial(noise, (3, side, side), 10)


def _parameters(width: int) -> int:
    return sum(p.numel() for p in mlp(width).parameters())


def _cells(found: dict) -> list[str]:
    exponents = [number(found["exponents"][name]) for name in NAMES]
    ends = [number(found["over_peer"][i]) for i in (0, -1)]
    sizes = [f"{found['sizes'][i]:,}" for i in (0, -1)]
    return [found["axis"], *sizes, found["what"], *exponents, " to ".join(ends)]
