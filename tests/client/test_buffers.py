"""Receive buffers: used again when nobody looks, and never before."""

import torch
from curvserve_client.buffers import BufferPool


def address(view: memoryview) -> int:
    return torch.frombuffer(view, dtype=torch.uint8).data_ptr()


def test_a_view_has_the_size_asked_for() -> None:
    pool = BufferPool()
    assert len(pool.take(0)) == 0
    assert len(pool.take(5)) == 5
    assert len(pool.take(3_000_000)) == 3_000_000


def test_memory_is_used_again_for_answers_of_like_size() -> None:
    pool = BufferPool()
    first = address(pool.take(3_400_000))
    assert address(pool.take(3_400_012)) == first


def test_memory_that_a_tensor_looks_at_is_left_alone() -> None:
    pool = BufferPool()
    tensor = torch.frombuffer(pool.take(100), dtype=torch.uint8, count=50)
    tensor.fill_(7)
    others = [pool.take(100) for _ in range(5)]
    for other in others:
        other[:] = bytes(100)
    assert tensor.eq(7).all()
    assert len({address(other) for other in others}) == 5


def test_memory_comes_back_when_the_tensor_is_gone() -> None:
    pool = BufferPool()
    tensor = torch.frombuffer(pool.take(100), dtype=torch.uint8)
    first = tensor.data_ptr()
    del tensor
    assert address(pool.take(100)) == first


def test_a_larger_answer_gets_larger_memory() -> None:
    pool = BufferPool()
    pool.take(100)
    view = pool.take(2_000_000)
    view[-1] = 1
    assert len(view) == 2_000_000
