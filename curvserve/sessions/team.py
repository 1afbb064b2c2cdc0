"""Workers that compute one batch together: each a part of its samples, all the same sum.

What parts contribute adds up (see `curvserve.engine.evaluate_part`), so one all-reduce of one flat
buffer is all that they say to each other: gradient, curvature, loss, metrics, and how many of them
have failed. Every worker makes the same calls in the same order; one that fails takes part with
zeros, so that nobody waits for it.
"""

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from functools import reduce
from itertools import accumulate, pairwise
from math import prod
from typing import Any, Protocol, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor
from torch.utils._pytree import TreeSpec, tree_flatten, tree_unflatten

T = TypeVar("T")


class PeerFailed(Exception):
    """Another worker could not compute its part, and says why itself."""


class Team(Protocol):
    """What a worker knows of those that it works with."""

    @property
    def rank(self) -> int:
        """Which of them it is, from 0 on."""

    @property
    def workers(self) -> int:
        """How many they are."""

    def total(self, what: Hashable, part: Callable[[], T] | None) -> T:
        """Return the sum of everybody's part.

        Args:
            what: names what is computed: parts of one name have one layout.
            part: computes this worker's, any nesting of floating point tensors; None where there
                is nothing for it to do.

        Raises:
            PeerFailed: another worker's part failed; where this one's did, its own error.
        """


def span(samples: int, rank: int, workers: int) -> range:
    """Return the samples of one worker: consecutive, in order, none where there are too few."""
    return range(rank * samples // workers, (rank + 1) * samples // workers)


@dataclass(frozen=True)
class _Layout:
    """Where the leaves of a part stand in the flat buffer, which ends with a count of failures."""

    spec: TreeSpec
    shapes: Sequence[torch.Size]
    dtypes: Sequence[torch.dtype]

    @property
    def dtype(self) -> torch.dtype:
        """The buffer's: wide enough for sums of half-precision numbers."""
        return reduce(torch.promote_types, self.dtypes, torch.float32)

    def places(self) -> list[tuple[int, int]]:
        """Return the begin and the end of each leaf."""
        return list(pairwise(accumulate(map(prod, self.shapes), initial=0)))

    def buffer(self, leaves: Sequence[Tensor] | None, device: torch.device) -> Tensor:
        """Return a part as a buffer; of a failed one, and one that is nothing, zeros."""
        size = sum(map(prod, self.shapes)) + 1
        if leaves is None:
            return torch.zeros(size, dtype=self.dtype, device=device)
        made = torch.empty(size, dtype=self.dtype, device=device)
        for leaf, (begin, end) in zip(leaves, self.places(), strict=True):
            made[begin:end].view(leaf.shape).copy_(leaf)
        made[-1] = 0
        return made

    def parts(self, buffer: Tensor) -> Any:
        """Return what a buffer holds."""
        leaves = [
            buffer[begin:end].view(shape).to(dtype)
            for (begin, end), shape, dtype in zip(
                self.places(), self.shapes, self.dtypes, strict=True
            )
        ]
        return tree_unflatten(leaves, self.spec)


class DistributedTeam:
    """Workers joined by torch.distributed.

    Attributes:
        rank: which of them this is.
        workers: how many they are.
    """

    def __init__(
        self, rank: int, workers: int, address: str, device: torch.device, seconds: float
    ) -> None:
        """Join; returns when all have.

        Args:
            rank: which of them this is.
            workers: how many they are.
            address: `host:port`, where the first of them listens.
            device: what this one computes on; GPUs talk by NCCL, CPUs by gloo.
            seconds: after which a call in which somebody is missing fails.
        """
        self.rank, self.workers = rank, workers
        self._device = device
        self._layouts: dict[Hashable, _Layout] = {}
        dist.init_process_group(
            "nccl" if device.type == "cuda" else "gloo",
            init_method=f"tcp://{address}",
            rank=rank,
            world_size=workers,
            timeout=timedelta(seconds=seconds),
        )

    def total(self, what: Hashable, part: Callable[[], T] | None) -> T:
        """See `Team`."""
        leaves, spec, error = None, None, None
        try:
            if part is not None:
                leaves, spec = tree_flatten(part())
        except Exception as failure:  # whatever it is, the others must not wait
            error = failure
        layout = self._layout(what, leaves, spec)
        if layout is None:
            raise error or PeerFailed
        buffer = layout.buffer(leaves, self._device)
        if error is not None:
            buffer[-1] = 1
        dist.all_reduce(buffer)
        if error is not None:
            raise error
        if buffer[-1].item():
            raise PeerFailed
        found: T = layout.parts(buffer)
        return found

    def _layout(
        self, what: Hashable, leaves: Sequence[Tensor] | None, spec: TreeSpec | None
    ) -> _Layout | None:
        """Return the layout of a part, which all workers agree on the first time."""
        if what in self._layouts:
            return self._layouts[what]
        own = None
        if leaves is not None and spec is not None:
            own = _Layout(spec, [t.shape for t in leaves], [t.dtype for t in leaves])
        told: list[_Layout | None] = [None] * self.workers
        dist.all_gather_object(told, own)
        found = next((layout for layout in told if layout is not None), None)
        if found is not None:
            self._layouts[what] = found
        return found
