"""Time a gradient with curvature: this engine, BackPACK, and the plain gradient as the floor.

    make bench
    python -m benchmarks [--rounds 30] [--threads 2] [--device cuda] [--batch 512]

All contestants run in this process, in turns, on the same model, batch and seed; a round is one
pass of each. Before anything is timed, the numbers of both engines are held against each other.
"""

import argparse
import platform
import statistics
import time
import warnings
from collections.abc import Callable
from copy import deepcopy

import backpack as peer
import torch
from backpack import extensions as peer_extensions
from torch import Tensor, nn
from tqdm import tqdm

from curvserve.data import load_digits, normalise
from curvserve.engine import backpack, extend, extensions
from curvserve.models.mnist_cnn import network

SEED = 0
TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-3}
TF32_TOLERANCE = 1e-2  # of float32 on a GPU, where cuDNN rounds what it multiplies to ten bits

Pass = Callable[[], object]


def mlp() -> nn.Sequential:
    """Return 784-512-256-10 with ReLU."""
    return nn.Sequential(
        nn.Flatten(),
        nn.Linear(784, 512),
        nn.ReLU(),
        nn.Linear(512, 256),
        nn.ReLU(),
        nn.Linear(256, 10),
    )


MODELS = {"mnist_cnn": network, "mlp": mlp}
QUANTITIES = {
    "DiagGGNMC": "diag_ggn_mc",
    "DiagGGNExact": "diag_ggn_exact",
    "BatchGrad": "grad_batch",
}


def plain(model: nn.Module, x: Tensor, y: Tensor) -> Pass:
    """Return forward and backward without an extension."""
    loss = nn.CrossEntropyLoss()

    def run() -> None:
        model.zero_grad()
        loss(model(x), y).backward()

    return run


def hooked(model: nn.Module, x: Tensor, y: Tensor, name: str) -> Pass:
    """Return this engine's pass by `backpack` and `backward`."""
    extend(model)
    loss = extend(nn.CrossEntropyLoss())

    def run() -> None:
        model.zero_grad()
        with backpack(getattr(extensions, name)()):
            loss(model(x), y).backward()

    return run


def backpacks(model: nn.Module, x: Tensor, y: Tensor, name: str) -> Pass:
    """Return BackPACK's pass."""
    peer.extend(model)
    loss = peer.extend(nn.CrossEntropyLoss())

    def run() -> None:
        model.zero_grad()
        with peer.backpack(getattr(peer_extensions, name)()):
            loss(model(x), y).backward()

    return run


def check(build: Callable[[], nn.Module], x: Tensor, y: Tensor, name: str) -> float:
    """Return the largest relative difference from BackPACK; raise where it is not rounding."""
    attribute = QUANTITIES[name]
    worst = 0.0
    for dtype, tolerance in TOLERANCE.items():
        if dtype == torch.float32 and x.is_cuda:
            tolerance = TF32_TOLERANCE
        torch.manual_seed(SEED)
        ours = build().to(x.device, dtype)
        theirs = deepcopy(ours)
        passes = [
            hooked(ours, x.to(dtype), y, name),
            backpacks(theirs, x.to(dtype), y, name),
        ]
        for run in passes:
            torch.manual_seed(SEED)
            run()
        for (label, p), q in zip(ours.named_parameters(), theirs.parameters(), strict=True):
            found, wanted = getattr(p, attribute), getattr(q, attribute)
            difference = ((found - wanted).norm() / wanted.norm()).item()
            if not difference <= tolerance:
                raise SystemExit(f"{name} of {label} in {dtype}: off by {difference:.1e}")
            if dtype == torch.float64:
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
    """Print one table for all models and quantities."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--device", type=torch.device, default=torch.device("cpu"))
    parser.add_argument("--batch", type=int, default=64)
    arguments = parser.parse_args()
    # BackPACK hooks modules whose input needs no gradient, and torch says so
    warnings.filterwarnings("ignore", message="Full backward hook is firing")
    torch.set_num_threads(arguments.threads)
    device, where = arguments.device, f"{torch.get_num_threads()} CPU threads"
    if device.type == "cuda":
        where = torch.cuda.get_device_name(device)
    print(
        f"torch {torch.__version__}, Python {platform.python_version()}, "
        f"{where}, batch {arguments.batch}, float32, "
        f"median of {arguments.rounds} interleaved rounds, milliseconds\n"
    )
    print("| model | quantity | gradient | ours | BackPACK | ours/BackPACK | off |")
    print("|---|---|---|---|---|---|---|")
    images, y = (tensor[: arguments.batch].to(device) for tensor in load_digits("train"))
    x = normalise(images)
    for title, build in MODELS.items():
        for name in QUANTITIES:
            difference = check(build, x, y, name)
            passes = {
                "gradient": plain(build().to(device), x, y),
                "ours": hooked(build().to(device), x, y, name),
                "peer": backpacks(build().to(device), x, y, name),
            }
            found = measure(passes, arguments.rounds, f"{title} {name}", device)
            columns = " | ".join(f"{found[column]:.2f}" for column in passes)
            ratio = found["ours"] / found["peer"]
            print(f"| {title} | {name} | {columns} | {ratio:.2f} | {difference:.0e} |", flush=True)


if __name__ == "__main__":
    main()
