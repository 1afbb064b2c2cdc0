"""The demo's training loop: what a user of the client would write."""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from curvserve_client import RemoteDiagGGNOptimizer, RemoteSession, connect
from torch import Tensor
from tqdm import tqdm

from ..data import load_digits, load_mnist

BATCH_SIZE = 64
SEED = 0
_EVALUATION_BATCH = 1000

Split = tuple[Tensor, Tensor]


def load(folder: Path | None) -> tuple[Split, Split]:
    """Return images (uint8) and labels to train from, and those held out.

    Args:
        folder: holds real MNIST; None for the bundled digits.

    Raises:
        FileNotFoundError: the folder does not hold MNIST.
    """
    if folder is None:
        return load_digits("train"), load_digits("test")
    return load_mnist(folder, "train"), load_mnist(folder, "test")


@dataclass(frozen=True)
class Outcome:
    """How a training went.

    Attributes:
        steps: how many, each one round trip.
        seconds: what they took together.
        accuracy: on what was held out.
        held_out: how many samples that is.
    """

    steps: int
    seconds: float
    accuracy: float
    held_out: int


def train(
    address: str, model: str, data: tuple[Split, Split], steps: int, tell: Callable[[str], None]
) -> Outcome:
    """Train a server's session of a model, and return how it went.

    Args:
        address: the server's.
        model: the model, which has a session of its name.
        data: what `load` returned.
        steps: training steps, each one round trip.
        tell: takes a line of log for each step.

    Raises:
        CurvserveError: the server failed.
    """
    to_train, held_out = data
    with connect(address, model=model) as session:
        began = time.perf_counter()
        _steps(session, to_train, steps, tell)
        seconds = time.perf_counter() - began
        accuracy = _accuracy(session, held_out)
    return Outcome(steps, seconds, accuracy, len(held_out[1]))


def say(line: str) -> None:
    """Print a line above the progress bar."""
    tqdm.write(line)


def _steps(session: RemoteSession, split: Split, steps: int, tell: Callable[[str], None]) -> None:
    optimizer = RemoteDiagGGNOptimizer(session.parameters())
    # the bar shows only where a person watches
    numbers = tqdm(range(1, steps + 1), unit="step", disable=None, leave=False)
    for number, (images, labels) in zip(numbers, _batches(split), strict=False):
        result = optimizer.step_on(images, labels)
        accuracy = round(result.metrics["accuracy"] * 100)
        tell(
            f"Iteration {number:3d}/{steps}   "
            f"Minibatch Loss {result.loss:.3f}  Accuracy {accuracy}%"
        )


def _batches(split: Split) -> Iterator[Split]:
    """Yield shuffled batches, epoch after epoch, without end."""
    images, labels = split
    generator = torch.Generator().manual_seed(SEED)
    while True:
        for chosen in torch.randperm(len(labels), generator=generator).split(BATCH_SIZE):
            yield images[chosen], labels[chosen]


def _accuracy(session: RemoteSession, split: Split) -> float:
    right = 0.0
    batches = zip(*(tensor.split(_EVALUATION_BATCH) for tensor in split), strict=True)
    for images, labels in batches:
        result = session.evaluate(images, labels)
        right += result.metrics["accuracy"] * result.samples
    return right / len(split[1])
