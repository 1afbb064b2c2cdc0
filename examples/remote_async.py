"""Several sessions of one server trained at once from one thread: a search for the damping.

    curvserve serve --model mnist_cnn
    python examples/remote_async.py [--url http://127.0.0.1:8000]

Each session starts from the same weights and sees the same 40 batches of bundled handwritten
digits. Takes some seconds on two CPU cores, server included; prints a line for each damping, best
last.
"""

import argparse
import asyncio

from curvserve_client import AsyncClient, RemoteDiagGGNOptimizer
from torch import Tensor

from curvserve.data import load_digits

STEPS = 40
BATCH_SIZE = 32
DAMPINGS = (0.3, 1.0, 10.0)


def batches() -> list[tuple[Tensor, Tensor]]:
    """Return the batches, images as bytes: they are normalised on the server."""
    images, labels = load_digits("train")
    return list(zip(images.split(BATCH_SIZE), labels.split(BATCH_SIZE), strict=True))[:STEPS]


async def accuracy_with(client: AsyncClient, damping: float) -> tuple[float, float]:
    """Train a session and return its accuracy on other digits, and the damping."""
    session = await client.create_session("mnist_cnn", seed=0)
    optimizer = RemoteDiagGGNOptimizer(session.parameters(), lr=0.05, damping=damping)
    for x, y in batches():
        await optimizer.step_on_async(x, y)
    found = await session.evaluate(*load_digits("test"))
    await client.delete_session(session.name)
    return found.metrics["accuracy"], damping


async def main(url: str) -> None:
    """Train one session for each damping, side by side."""
    async with AsyncClient(url) as client:
        found = await asyncio.gather(*(accuracy_with(client, damping) for damping in DAMPINGS))
    for accuracy, damping in sorted(found):
        print(f"damping {damping:4.1f}: {accuracy:.1%} of the digits held out")


parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
parser.add_argument("--url", default="http://127.0.0.1:8000", help="the server (%(default)s)")
asyncio.run(main(parser.parse_args().url))
