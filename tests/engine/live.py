"""Counts the tensors that a test makes."""

import gc
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from torch import Tensor


@contextmanager
def counting_tensors() -> Iterator[Callable[[], int]]:
    """A function that counts the tensors made in the block that are alive.

    What was there before is frozen, and so not counted: it may die meanwhile (a fixture's, another
    thread's) and would hide a leak.
    """

    def live() -> int:
        gc.collect()
        return sum(1 for o in gc.get_objects() if issubclass(type(o), Tensor))

    gc.collect()
    gc.freeze()
    try:
        yield live
    finally:
        gc.unfreeze()
