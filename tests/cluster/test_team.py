"""What workers say to each other: sums, slices, and that one of them has failed."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import ray
import torch
from torch import Tensor

from curvserve.sessions.team import DistributedTeam, PeerFailed, sliced, span
from tests.crash.run import free_port

WORKERS = 3


class Member:
    """One process of a team."""

    def __init__(self, rank: int, address: str) -> None:
        self.team = DistributedTeam(rank, WORKERS, address, torch.device("cpu"), 30.0)

    def do(self, work: Callable[[DistributedTeam], Any]) -> Any:
        """Return what work comes to, or the name of the error that it raises."""
        try:
            return work(self.team)
        except (PeerFailed, ArithmeticError) as error:
            return type(error).__name__


@pytest.fixture(scope="module")
def members(cluster: None) -> Iterator[Callable[[Callable[[DistributedTeam], Any]], list[Any]]]:
    """Three processes, of which each does the same."""
    address = f"127.0.0.1:{free_port()}"
    actors = [ray.remote(Member).options(num_cpus=0.1).remote(n, address) for n in range(WORKERS)]
    yield lambda work: ray.get([actor.do.remote(work) for actor in actors])
    for actor in actors:
        ray.kill(actor)


def tree(rank: int) -> tuple[dict[str, Tensor], dict[str, list[Tensor]]]:
    """Return what a worker of this rank contributes: of two dtypes, some smaller than the team."""
    numbers = torch.arange(7.0, dtype=torch.float64) + 10 * rank
    shared = {"loss": torch.tensor(1.5 * rank, dtype=torch.float32)}
    return shared, {"h": [numbers.view(7, 1), numbers[:2].float()], "g": [numbers[:1]]}


def whole() -> tuple[dict[str, Tensor], dict[str, list[Tensor]]]:
    """Return the sum of all contributions."""
    parts = [tree(rank) for rank in range(WORKERS)]
    loss = sum(shared["loss"] for shared, _ in parts)
    sums = {
        name: [sum(own[name][index] for _, own in parts) for index in range(len(parts[0][1][name]))]
        for name in ("h", "g")
    }
    return {"loss": loss}, sums  # type: ignore[dict-item,return-value]  # `sum` may be 0


def same(found: Any, expected: Any) -> None:
    torch.testing.assert_close(found, expected, rtol=0, atol=0)


def test_a_span_is_a_part_of_all_in_order() -> None:
    for samples in range(9):
        for workers in (1, 2, 4):
            spans = [span(samples, rank, workers) for rank in range(workers)]
            assert [n for each in spans for n in each] == list(range(samples))
            assert max(map(len, spans)) - min(map(len, spans)) <= 1


def test_everybody_has_the_sum(members: Any) -> None:
    for found in members(lambda team: team.total("sum", lambda: tree(team.rank))):
        same(found, whole())


def test_who_has_nothing_to_do_has_the_sum_too(members: Any) -> None:
    alone = members(lambda team: team.total("alone", (lambda: tree(1)) if team.rank == 1 else None))
    for found in alone:
        same(found, tree(1))


def test_slices_of_the_sum_make_up_the_whole(members: Any) -> None:
    loss, sums = whole()
    found = members(lambda team: team.scattered("slices", lambda: tree(team.rank)))
    for shared, _ in found:
        same(shared, loss)
    for name, expected in sums.items():
        for index, tensor in enumerate(expected):
            pieces = [own[name][index] for _, own in found]
            same(torch.cat(pieces), tensor.reshape(-1))


def test_slices_are_gathered(members: Any) -> None:
    full = {"a": torch.randn(5, 2), "b": torch.randn(1).bfloat16(), "c": torch.arange(4)}

    def work(team: DistributedTeam) -> dict[str, Tensor]:
        return team.gathered(full, lambda: sliced(full, team.rank, team.workers))

    for found in members(work):
        same(found, full)


@pytest.mark.parametrize("known", [False, True], ids=["at first", "later"])
@pytest.mark.parametrize("way", ["total", "scattered", "gathered"])
def test_a_part_that_fails_is_told_to_all_and_nobody_waits(
    members: Any, way: str, known: bool
) -> None:
    what = f"{way} {known}"
    like = {"a": torch.ones(4)}

    def work(team: DistributedTeam, bad: bool) -> Any:
        def part() -> Any:
            if bad and team.rank == 1:
                raise ArithmeticError
            return sliced(like, team.rank, WORKERS) if way == "gathered" else tree(team.rank)

        return getattr(team, way)(like if way == "gathered" else what, part)

    if known:
        members(lambda team: work(team, bad=False))
    told = members(lambda team: work(team, bad=True))
    assert told == ["PeerFailed", "ArithmeticError", "PeerFailed"]
    for found in members(lambda team: team.total("sum", lambda: tree(team.rank))):
        same(found, whole())  # they are still in step


def test_where_all_fail_each_tells_its_own(members: Any) -> None:
    assert members(lambda team: team.total("nobody", lambda: 1 / 0)) == ["ZeroDivisionError"] * 3
