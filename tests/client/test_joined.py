"""Several clients take one step together."""

import threading
from collections.abc import Iterator

import pytest
import torch
from curvserve_client import (
    SGD,
    Client,
    NothingPending,
    RemoteSession,
    StepResult,
    connect,
)
from torch import Tensor

from tests.server.process import forkserver

Batches = list[tuple[Tensor, Tensor]]


@pytest.fixture
def plain(client: Client) -> Iterator[RemoteSession]:
    """A session whose steps depend on the gradient alone, which is a mean over samples."""
    made = client.create_session("mnist_cnn", seed=5, rule=SGD(lr=0.1, momentum=0.5))
    yield made
    client.delete_session(made.name)


def parts(batches: Batches) -> list[tuple[Tensor, Tensor]]:
    """Unequal parts of the first batch."""
    inputs, targets = batches[0]
    return list(zip(inputs.split([3, 8, 5]), targets.split([3, 8, 5]), strict=True))


def train(url: str, name: str, rank: int, part: tuple[Tensor, Tensor], steps: int) -> list[int]:
    with connect(url, session=name, run=f"rank-{rank}") as session:
        return [session.joined_step(*part, clients=3).version for _ in range(steps)]


def together(url: str, name: str, given: list[tuple[Tensor, Tensor]]) -> list[StepResult]:
    """One joined step of as many clients as there are parts, each in a thread."""
    results: list[StepResult] = []

    def work(rank: int) -> None:
        with connect(url, session=name, run=f"rank-{rank}") as session:
            results.append(session.joined_step(*given[rank], clients=len(given)))

    threads = [threading.Thread(target=work, args=(rank,)) for rank in range(len(given))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return results


def test_a_joined_step_is_that_of_the_whole_batch(
    server_url: str, plain: RemoteSession, client: Client, batches: Batches
) -> None:
    alone = client.create_session("mnist_cnn", seed=5, rule=SGD(lr=0.1, momentum=0.5))
    for _ in range(3):
        results = together(server_url, plain.name, parts(batches))
        expected = alone.step(*batches[0])
        assert len(results) == 3 and len({repr(result) for result in results}) == 1
        assert results[0].samples == expected.samples == 16
        assert results[0].loss == pytest.approx(expected.loss, rel=1e-6)
        assert results[0].version == expected.version
    found, wanted = plain.pull(), alone.pull()
    client.delete_session(alone.name)
    for name, tensor in found.items():
        torch.testing.assert_close(tensor, wanted[name], rtol=1e-5, atol=1e-7)


def test_processes_feed_one_session(
    server_url: str, session: RemoteSession, batches: Batches
) -> None:
    with forkserver().Pool(3) as pool:
        given = [
            (server_url, session.name, rank, part, 4) for rank, part in enumerate(parts(batches))
        ]
        assert pool.starmap(train, given) == [[1, 2, 3, 4]] * 3
    assert session.info().version == 4


def test_a_client_that_starts_again_counts_once(
    server_url: str, plain: RemoteSession, batches: Batches
) -> None:
    first, *others = parts(batches)
    for _ in range(2):
        with (
            connect(server_url, session=plain.name, run="rank-0", timeout=1.5) as alone,
            pytest.raises(NothingPending, match="1"),
        ):
            alone.joined_step(*first, clients=3)
    assert plain.info().pending == 1
    results = together(server_url, plain.name, [first, *others])
    assert [result.samples for result in results] == [16, 16, 16]
