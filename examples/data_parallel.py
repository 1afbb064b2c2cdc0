"""Several processes train one session, each with its part of the data.

    curvserve serve --model mnist_cnn
    python examples/data_parallel.py [--url http://127.0.0.1:8000] [--clients 2]

Every process takes every step together with the others: gradient and curvature are means over all
their samples, and a step is one version. Takes some seconds on two CPU cores, server included;
above 85% of 297 digits that no process has seen are right at the end.
"""

import argparse
import multiprocessing

from curvserve_client import Client, connect

from curvserve.data import load_digits

STEPS = 60
SAMPLES = 64


def train(url: str, name: str, rank: int, clients: int) -> None:
    """Take part in every step, with this process's share of the digits."""
    images, labels = (tensor[rank::clients] for tensor in load_digits("train"))
    part = SAMPLES // clients
    # a process that is started again under its name goes on where it was, and counts once
    with connect(url, session=name, run=f"rank-{rank}") as session:
        for step in range(STEPS):
            chosen = [(step * part + i) % len(labels) for i in range(part)]
            result = session.joined_step(images[chosen], labels[chosen], clients=clients, lr=0.05)
            if rank == 0 and result.version % 10 == 0:
                print(
                    f"step {result.version:3d}   loss {result.loss:.3f}   {result.samples} digits"
                )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--url", default="http://127.0.0.1:8000", help="the server (%(default)s)")
    parser.add_argument("--clients", type=int, default=2, help="processes (%(default)s)")
    arguments = parser.parse_args()
    with Client(arguments.url) as client:
        session = client.create_session("mnist_cnn", seed=0)
        ranks = [
            (arguments.url, session.name, rank, arguments.clients)
            for rank in range(arguments.clients)
        ]
        with multiprocessing.get_context("spawn").Pool(arguments.clients) as pool:
            pool.starmap(train, ranks)
        found = session.evaluate(*load_digits("test"))
        print(f"held-out accuracy {found.metrics['accuracy']:.1%} at version {found.version}")
        client.delete_session(session.name)
