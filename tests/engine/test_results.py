"""Large results lie in memory that is used again, and never in memory that is looked at."""

import threading

import torch
from torch import Tensor, nn

from curvserve.engine import Evaluator, evaluate, results

SHAPE = (64, 100, 100)  # 2.6 MB


def taken(like: Tensor | None = None) -> Tensor:
    return results.empty(SHAPE, torch.zeros(1) if like is None else like)


def test_what_was_dropped_is_used_again_and_what_is_held_is_not() -> None:
    results.release()
    first = taken()
    place = first.data_ptr()
    assert place % 64 == 0 and first.shape == SHAPE and first.dtype == torch.float32
    second = taken()
    assert second.data_ptr() != place
    view = first[1].T
    del first
    assert taken().data_ptr() != place  # a view still looks at it
    del view
    assert taken().data_ptr() == place
    del second
    results.release()


def test_small_ones_and_those_of_other_types() -> None:
    assert results.empty((3, 4), torch.zeros(1)).storage_offset() == 0
    double = taken(torch.zeros(1, dtype=torch.float64))
    assert double.dtype == torch.float64 and double.shape == SHAPE
    assert results.empty((0, 1 << 20), torch.zeros(1)).numel() == 0


def test_what_nobody_takes_is_given_back() -> None:
    results.release()
    taken()
    assert len(results._BLOCKS._blocks) == 1
    for _ in range(results._KEPT_CALLS):
        results.empty((1 << 21,), torch.zeros(1))
    assert len(results._BLOCKS._blocks) == 1
    results.release()


def test_threads_never_share_a_block() -> None:
    wrong = []

    def work(number: int) -> None:
        for _ in range(50):
            own = taken().fill_(number)
            if not bool((own == number).all()):
                wrong.append(number)

    threads = [threading.Thread(target=work, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_results_that_are_kept_stay_as_they_were() -> None:
    model, loss = (
        nn.Sequential(nn.Linear(200, 100), nn.ReLU(), nn.Linear(100, 3)),
        nn.CrossEntropyLoss(),
    )
    evaluator = Evaluator(model, loss, eager_calls=1)
    kept, wanted = [], []
    for seed in range(6):
        x, y = torch.randn(64, 200), torch.randint(3, (64,))
        kept.append(evaluator(x, y, ["grad_batch"], seed=seed).quantities["grad_batch"])
        wanted.append({name: value.clone() for name, value in kept[-1].items()})
        again = evaluate(model, loss, x, y, ["grad_batch"]).quantities["grad_batch"]
        assert all(torch.equal(again[name], value) for name, value in wanted[-1].items())
    assert evaluator.compiled() == 1
    for own, before in zip(kept, wanted, strict=True):
        assert all(torch.equal(own[name], value) for name, value in before.items())
