"""Time a gradient with curvature: this engine, BackPACK, and the plain gradient as the floor.

    make bench
    python -m benchmarks [--rounds 20] [--threads 2] [--device cuda] [--batch 512] [--json FILE]

All contestants run in this process, in turns, the order reversed every other round, on the same
net, batch and seed; a round is one pass of each. Before anything is timed, their numbers are held
against each other in float64. `hooks` is this engine by `extend` and `backpack`, `evaluate` is it
in one call, as a server computes; `channels_last` is BackPACK with net and images in that format.
"""

import argparse
import json
import math
import platform
import statistics
import time
import warnings
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path

import backpack as peer
import torch
from backpack import extensions as peer_extensions
from torch import Tensor, nn
from tqdm import tqdm

from benchmarks.nets import CASES, Case
from curvserve.engine import backpack, channels_last, evaluate, extend, extensions

SEED = 0
TOLERANCE = 1e-10
QUANTITIES = {
    "DiagGGNMC": "diag_ggn_mc",
    "DiagGGNExact": "diag_ggn_exact",
    "BatchGrad": "grad_batch",
}

Pass = Callable[[], object]
Found = dict[str, Tensor]


class Contestant:
    """One way to get the gradient and a quantity of a net and a batch."""

    def __init__(self, net: nn.Module, x: Tensor, y: Tensor, name: str) -> None:
        """Prepare whatever need not be done in each pass."""
        self.net, self.x, self.y, self.name = net, x, y, name
        self.loss: nn.Module = nn.CrossEntropyLoss()

    def run(self) -> None:
        """Do one pass."""
        self.net.zero_grad()
        self.loss(self.net(self.x), self.y).backward()

    def found(self) -> Found:
        """Return the quantity of the last pass, by parameter."""
        field = QUANTITIES[self.name]
        return {name: getattr(p, field) for name, p in self.net.named_parameters()}


class Hooks(Contestant):
    """This engine, by hooks."""

    def __init__(self, net: nn.Module, x: Tensor, y: Tensor, name: str) -> None:
        """Extend the net and the loss."""
        super().__init__(extend(net), x, y, name)
        self.loss = extend(nn.CrossEntropyLoss())

    def run(self) -> None:
        """Do one pass."""
        with backpack(getattr(extensions, self.name)()):
            super().run()


class Evaluate(Contestant):
    """This engine, in one call."""

    def run(self) -> None:
        """Do one pass."""
        quantities = ["grad", QUANTITIES[self.name]]
        self.result = evaluate(self.net, self.loss, self.x, self.y, quantities)

    def found(self) -> Found:
        """Return the quantity of the last pass, by parameter."""
        return self.result.quantities[QUANTITIES[self.name]]


class BackPACK(Contestant):
    """The peer."""

    def __init__(self, net: nn.Module, x: Tensor, y: Tensor, name: str) -> None:
        """Extend the net and the loss."""
        super().__init__(peer.extend(net), x, y, name)
        self.loss = peer.extend(nn.CrossEntropyLoss())

    def run(self) -> None:
        """Do one pass."""
        with peer.backpack(getattr(peer_extensions, self.name)()):
            super().run()


class ChannelsLast(BackPACK):
    """The peer, with net and images in the format that a CPU convolves fastest."""

    def __init__(self, net: nn.Module, x: Tensor, y: Tensor, name: str) -> None:
        """Change the format first."""
        super().__init__(net.to(memory_format=torch.channels_last), channels_last(x), y, name)


CONTESTANTS: dict[str, type[Contestant]] = {
    "gradient": Contestant,
    "hooks": Hooks,
    "evaluate": Evaluate,
    "BackPACK": BackPACK,
    "channels_last": ChannelsLast,
}


def check(case: Case, name: str, device: torch.device) -> float:
    """Return the largest relative difference from BackPACK; raise where it is not rounding."""
    x, y = case.data(device, min(case.batch, 8))
    torch.manual_seed(SEED)
    net = case.build().double().to(device)
    found: dict[str, Found] = {}
    for title, kind in CONTESTANTS.items():
        if kind is not Contestant:
            contestant = kind(deepcopy(net), x.double(), y, name)
            torch.manual_seed(SEED)
            torch.set_default_dtype(torch.float64)  # BackPACK averages in the default one
            contestant.run()
            torch.set_default_dtype(torch.float32)
            found[title] = contestant.found()
    worst = 0.0
    for title, own in found.items():
        for parameter, wanted in found["BackPACK"].items():
            difference = ((own[parameter] - wanted).norm() / wanted.norm()).item()
            if not difference <= TOLERANCE:
                raise SystemExit(f"{title}: {name} of {parameter} is off by {difference:.1e}")
            worst = max(worst, difference)
    return worst


def synchronise(device: torch.device) -> None:
    """Return when the device has done all that it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def measure(
    passes: dict[str, Pass], rounds: int, title: str, device: torch.device
) -> dict[str, float]:
    """Return each pass's median milliseconds; one round runs every pass once.

    Args:
        passes: name -> pass.
        rounds: how many are timed.
        title: of the progress bar.
        device: where they compute.
    """
    times: dict[str, list[float]] = {name: [] for name in passes}
    for number in tqdm(range(-3, rounds), desc=title, leave=False, disable=None):
        order = list(passes) if number % 2 else list(reversed(passes))
        for name in order:
            synchronise(device)
            began = time.perf_counter()
            passes[name]()
            synchronise(device)
            if number >= 0:  # the first rounds warm up
                times[name].append(1000 * (time.perf_counter() - began))
    return {name: statistics.median(values) for name, values in times.items()}


def main() -> None:
    """Print one table for all nets and quantities."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--device", type=torch.device, default=torch.device("cpu"))
    parser.add_argument("--batch", type=int, help="in place of each net's own")
    parser.add_argument("--json", type=Path, help="a file for the medians")
    arguments = parser.parse_args()
    # BackPACK hooks modules whose input needs no gradient, and torch says so
    warnings.filterwarnings("ignore", message="Full backward hook is firing")
    torch.set_num_threads(arguments.threads)
    device, where = arguments.device, f"{torch.get_num_threads()} CPU threads"
    if device.type == "cuda":
        where = torch.cuda.get_device_name(device)
    print(
        f"torch {torch.__version__}, Python {platform.python_version()}, {where}, float32, "
        f"median of {arguments.rounds} interleaved rounds, milliseconds\n"
    )
    print(f"| net | quantity | {' | '.join(CONTESTANTS)} | evaluate/BackPACK | off |")
    print("|---" * (len(CONTESTANTS) + 4) + "|")
    rows = []
    for case in CASES:
        for name in QUANTITIES if case.all_quantities else ("DiagGGNMC",):
            off = check(case, name, device)
            x, y = case.data(device, arguments.batch)
            passes: dict[str, Pass] = {
                title: kind(case.build().to(device), x, y, name).run
                for title, kind in CONTESTANTS.items()
            }
            found = measure(passes, arguments.rounds, f"{case.name} {name}", device)
            ratio = found["evaluate"] / found["BackPACK"]
            rows.append({"net": case.name, "quantity": name, "batch": len(x), **found})
            columns = " | ".join(f"{value:.2f}" for value in found.values())
            title = f"{case.name}, {len(x)}"
            print(f"| {title} | {name} | {columns} | {ratio:.2f} | {off:.0e} |", flush=True)
    ratios = [r["evaluate"] / r["BackPACK"] for r in rows if r["quantity"] == "DiagGGNMC"]
    mean = math.prod(ratios) ** (1 / len(ratios))
    print(f"\nDiagGGNMC, geometric mean of evaluate/BackPACK over the nets: {mean:.2f}")
    if arguments.json:
        arguments.json.write_text(json.dumps({"where": where, "rows": rows}, indent=1))


if __name__ == "__main__":
    main()
