"""Workers that compute one batch together: each a part of its samples, all the same sum.

What parts contribute adds up (see `curvserve.engine.evaluate_part`), so one all-reduce of one flat
buffer is all that they say to each other: gradient, curvature, loss, metrics, and how many of them
have failed. Where each keeps a slice of what a rule remembers, it is a reduce-scatter before the
update and an all-gather of the parameters after it (Rajbhandari, Rasley, Ruwase, He, "ZeRO: memory
optimizations toward training trillion parameter models", SC 2020, stage 1). Every worker makes the
same calls in the same order; one that fails takes part with zeros, so that nobody waits for it.
"""

from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from functools import reduce
from itertools import accumulate, pairwise
from math import prod
from typing import Any, Protocol, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor
from torch.utils._pytree import TreeSpec, tree_flatten, tree_leaves, tree_unflatten

S = TypeVar("S")
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

    def scattered(self, what: Hashable, part: Callable[[], tuple[S, T]] | None) -> tuple[S, T]:
        """Return the sum of everybody's part: of its second half this worker's slices alone.

        Args:
            what: as for `total`.
            part: as for `total`; a pair. Of each tensor in its second half, the slice is the `span`
                of its elements in row-major order.

        Raises:
            PeerFailed: as `total`.
        """

    def gathered(
        self, like: Mapping[str, Tensor], part: Callable[[], Mapping[str, Tensor]]
    ) -> dict[str, Tensor]:
        """Return tensors of which each worker has its slices.

        Args:
            like: name -> tensor of the shape and dtype that is to be returned.
            part: returns this worker's slices of all of them.

        Raises:
            PeerFailed: as `total`.
        """


def span(samples: int, rank: int, workers: int) -> range:
    """Return the samples of one worker: consecutive, in order, none where there are too few."""
    return range(rank * samples // workers, (rank + 1) * samples // workers)


def sliced(tensors: Mapping[str, Tensor], rank: int, workers: int) -> dict[str, Tensor]:
    """Return one worker's slice of each tensor, one-dimensional and of its own memory."""
    return {
        name: _slice(tensor.reshape(-1), rank, workers).clone() for name, tensor in tensors.items()
    }


@dataclass(frozen=True)
class _Layout:
    """Where the leaves of a part stand in the flat buffer, which ends with a count of failures.

    Attributes:
        first: of a part that is a tuple, how many leaves its first element has.
    """

    spec: TreeSpec
    first: int
    shapes: Sequence[torch.Size]
    dtypes: Sequence[torch.dtype]

    @property
    def dtype(self) -> torch.dtype:
        """The buffer's: wide enough for sums of half-precision numbers."""
        return reduce(torch.promote_types, self.dtypes, torch.float32)

    def places(self) -> list[tuple[int, int]]:
        """Return the begin and the end of each leaf."""
        return _places(map(prod, self.shapes))

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
        computed = _computed(part)
        layout = self._layout(what, computed)
        if layout is None:
            raise computed.error or PeerFailed
        buffer = layout.buffer(computed.leaves, self._device)
        buffer[-1] = computed.failed
        dist.all_reduce(buffer)
        computed.check(buffer[-1])
        found: T = layout.parts(buffer)
        return found

    def scattered(self, what: Hashable, part: Callable[[], tuple[S, T]] | None) -> tuple[S, T]:
        """See `Team`."""
        computed = _computed(part)
        layout = self._layout(what, computed)
        if layout is None:
            raise computed.error or PeerFailed
        shared = layout.first  # so many leaves everybody has whole
        sizes = [
            [
                size if index < shared else len(span(size, rank, self.workers))
                for index, size in enumerate(map(prod, layout.shapes))
            ]
            for rank in range(self.workers)
        ]
        width = max(map(sum, sizes)) + 1
        rows = torch.zeros(self.workers, width, dtype=layout.dtype, device=self._device)
        for rank, row in enumerate(rows):
            row[-1] = computed.failed
            for index, (begin, end) in enumerate(_places(sizes[rank])):
                if computed.leaves is not None:
                    flat = computed.leaves[index].reshape(-1)
                    row[begin:end] = flat if index < shared else _slice(flat, rank, self.workers)
        own = torch.empty(width, dtype=layout.dtype, device=self._device)
        _reduce_scatter(own, rows.view(-1))
        computed.check(own[-1])
        places = _places(sizes[self.rank])
        leaves = [
            own[begin:end].to(dtype).view(shape if index < shared else (end - begin,))
            for index, ((begin, end), shape, dtype) in enumerate(
                zip(places, layout.shapes, layout.dtypes, strict=True)
            )
        ]
        found: tuple[S, T] = tree_unflatten(leaves, layout.spec)
        return found

    def gathered(
        self, like: Mapping[str, Tensor], part: Callable[[], Mapping[str, Tensor]]
    ) -> dict[str, Tensor]:
        """See `Team`; bytes are gathered, so dtypes may differ."""
        computed = _computed(lambda: _in_order(part(), like))
        sizes = [
            [len(span(t.numel(), rank, self.workers)) * t.itemsize for t in like.values()]
            for rank in range(self.workers)
        ]
        width = max(map(sum, sizes)) + 1
        own = torch.zeros(width, dtype=torch.uint8, device=self._device)
        own[-1] = computed.failed
        if computed.leaves is not None:
            for tensor, (begin, end) in zip(
                computed.leaves, _places(sizes[self.rank]), strict=True
            ):
                own[begin:end] = tensor.contiguous().view(torch.uint8)
        rows = torch.empty(self.workers * width, dtype=torch.uint8, device=self._device)
        _all_gather(rows, own)
        rows = rows.view(self.workers, width)
        computed.check(rows[:, -1].sum())
        places = [_places(each) for each in sizes]
        return {
            name: torch.cat([row[slice(*places[rank][index])] for rank, row in enumerate(rows)])
            .view(tensor.dtype)
            .view(tensor.shape)
            for index, (name, tensor) in enumerate(like.items())
        }

    def _layout(self, what: Hashable, computed: "_Computed") -> _Layout | None:
        """Return the layout of a part, which all workers agree on the first time."""
        if what in self._layouts:
            return self._layouts[what]
        own, leaves, spec = None, computed.leaves, computed.spec
        if leaves is not None and spec is not None:
            own = _Layout(
                spec, computed.first, [t.shape for t in leaves], [t.dtype for t in leaves]
            )
        told: list[_Layout | None] = [None] * self.workers
        dist.all_gather_object(told, own)
        found = next((layout for layout in told if layout is not None), None)
        if found is not None:
            self._layouts[what] = found
        return found


@dataclass(frozen=True)
class _Computed:
    """What came of a worker's part; neither leaves nor an error where there was nothing to do."""

    leaves: Sequence[Tensor] | None = None
    spec: TreeSpec | None = None
    first: int = 0
    error: Exception | None = None

    @property
    def failed(self) -> int:
        """Whether it did, to be counted."""
        return int(self.error is not None)

    def check(self, failures: Tensor) -> None:
        """Raise where anybody's part failed."""
        if self.error is not None:
            raise self.error
        if failures.item():
            raise PeerFailed


def _computed(part: Callable[[], Any] | None) -> _Computed:
    if part is None:
        return _Computed()
    try:
        found = part()
        first = len(tree_leaves(found[0])) if isinstance(found, tuple) else 0
        return _Computed(*tree_flatten(found), first)
    except Exception as error:  # whatever it is, the others must not wait
        return _Computed(error=error)


def _in_order(tensors: Mapping[str, Tensor], names: Iterable[str]) -> list[Tensor]:
    return [tensors[name] for name in names]


def _places(sizes: Iterable[int]) -> list[tuple[int, int]]:
    """Return the begin and the end of each of consecutive pieces."""
    return list(pairwise(accumulate(sizes, initial=0)))


def _slice(flat: Tensor, rank: int, workers: int) -> Tensor:
    own = span(len(flat), rank, workers)
    return flat[own.start : own.stop]


# the names of torch 2.14, or those before
_reduce_scatter: Callable[..., Any] = getattr(
    dist, "reduce_scatter_single", dist.reduce_scatter_tensor
)
_all_gather: Callable[..., Any] = getattr(dist, "all_gather_single", dist.all_gather_into_tensor)
