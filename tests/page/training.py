"""A real client that trains while the page is looked at."""

import itertools
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from curvserve_client import RemoteDiagGGNOptimizer, RemoteSession, connect
from torch import Tensor

from curvserve.data import load_digits

SAMPLES = 16


def batches() -> Iterator[tuple[Tensor, Tensor]]:
    """Yield small batches without end."""
    images, labels = load_digits("train")
    parts = zip(images.split(SAMPLES)[:-1], labels.split(SAMPLES)[:-1], strict=True)
    return itertools.cycle(parts)


def train(session: RemoteSession, steps: int) -> None:
    """Take some steps."""
    optimizer = RemoteDiagGGNOptimizer(session.parameters())
    for images, labels in itertools.islice(batches(), steps):
        optimizer.step_on(images, labels)


@contextmanager
def training(address: str, session: str = "mnist_cnn") -> Iterator[None]:
    """Train a session during a block, one step after another."""
    ended = threading.Event()
    errors: list[BaseException] = []

    def loop() -> None:
        try:
            with connect(address, session=session) as remote:
                while not ended.is_set():
                    train(remote, 1)
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=loop)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
    assert errors == []
