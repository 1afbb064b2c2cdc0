"""Finds where the samples of a batch lie in each tensor of the graph.

A per-sample quantity is only right if one knows which rows of a layer's output belong to which
sample. The axis is not always the first: recurrent nets may put time first, a model may flatten
its tokens, a window attention puts windows where samples were. So it is measured: a cotangent
that is zero outside one sample is sent back through the graph, and where it arrives shows where
that sample lies. If the cotangents of two samples overlap, the samples are mixed (batch norm in
training mode), and no per-sample quantity exists.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge

__all__ = ["Layout", "candidates", "locate"]


@dataclass(frozen=True)
class Layout:
    """Samples along one axis: entry i belongs to sample ``(i // inner) % N``.

    Attributes:
        axis: The axis.
        outer: How often the row of samples is repeated along it.
        inner: How many neighbouring entries belong to the same sample.
    """

    axis: int = 0
    outer: int = 1
    inner: int = 1

    def samples_first(self, tensor: Tensor, samples: int) -> Tensor:
        """A view with the samples as the first axis, what else the axis held right behind."""
        if self == Layout():
            return tensor
        if self.outer == self.inner == 1:
            return tensor.movedim(self.axis, 0)
        axis = self.axis
        split: Tensor = tensor.unflatten(axis, (self.outer, samples, self.inner))
        return split.movedim((axis + 1, axis, axis + 2), (0, 1, 2))

    def one_sample(self, tensor: Tensor) -> Tensor:
        """Undoes :meth:`samples_first` for one of its entries: a batch of that sample alone."""
        if self.outer == self.inner == 1:
            return tensor.unsqueeze(self.axis)
        rest = tensor.movedim((0, 1), (self.axis, self.axis + 1))
        return rest.flatten(self.axis, self.axis + 1)


def candidates(shape: Sequence[int], samples: int) -> Iterator[Layout]:
    """All layouts that a tensor of this shape can have, the commonest first."""
    for axis, size in enumerate(shape):
        if size % samples or size == 0:
            continue
        rest = size // samples
        for inner in range(rest, 0, -1):
            if rest % inner == 0:
                yield Layout(axis, rest // inner, inner)


def locate(
    output: GradientEdge,
    like: Tensor,
    layout: Layout,
    samples: int,
    edges: Sequence[GradientEdge],
) -> tuple[list[Layout | None], bool]:
    """Finds the layout of the samples at each edge of the graph.

    Args:
        output: The edge of the model's output.
        like: The output itself, for shape and dtype.
        layout: Where the samples lie in it.
        samples: Their number N.
        edges: The edges to look at.

    Returns:
        For each edge its layout, or None where samples are mixed; and whether all of it was seen
        rather than guessed (an edge that no gradient reaches now gives no evidence).
    """
    search = _Search(output, like, layout, samples, edges)
    everything = search.send(range(samples))
    for sample in sorted({0, samples - 1, samples // 2}):
        search.narrow(sample)
    blind = [i for i, seen in enumerate(search.seen) if not seen]
    alive = [i for i in blind if everything[i] is not None]
    for sample in range(samples):
        if all(search.seen[i] for i in alive):
            break
        search.narrow(sample)
    found = [next(iter(options), None) for options in search.options]
    for i in blind:
        if everything[i] is None and found[i] is None:
            found[i] = Layout()  # nothing arrives here: any layout gives the right zeros
    return found, not blind


class _Search:
    """The layouts still possible at each edge, narrowed down sample by sample."""

    def __init__(
        self,
        output: GradientEdge,
        like: Tensor,
        layout: Layout,
        samples: int,
        edges: Sequence[GradientEdge],
    ) -> None:
        self._output, self._like, self._edges = output, like, list(edges)
        self._layout, self._samples = layout, samples
        # Random, so that no softmax or norm on the way cancels it; not from the global generator.
        generator = torch.Generator().manual_seed(0)
        noise = torch.randn(like.shape, generator=generator, dtype=torch.float64)
        self._noise = noise.to(like)
        self.seen = [False] * len(self._edges)
        self.options: list[list[Layout]] = []

    def send(self, samples: Sequence[int]) -> list[Tensor | None]:
        """Where the cotangents of some samples arrive: a mask for each edge, None for nowhere."""
        keep = torch.zeros_like(self._noise)
        self._layout.samples_first(keep, self._samples)[list(samples)] = 1
        cotangents = torch.autograd.grad(
            [self._output], self._edges, [self._noise * keep], retain_graph=True, allow_unused=True
        )
        if not self.options:
            self.options = [
                [] if c is None else list(candidates(c.shape, self._samples)) for c in cotangents
            ]
        masks = [None if c is None else c != 0 for c in cotangents]
        return [mask if mask is not None and bool(mask.any()) else None for mask in masks]

    def narrow(self, sample: int) -> None:
        """Strikes the layouts under which the cotangent of one sample reaches another's place."""
        for index, mask in enumerate(self.send([sample])):
            if mask is not None:
                self.seen[index] = True
                self.options[index] = [
                    option for option in self.options[index] if self._only(option, mask, sample)
                ]

    def _only(self, layout: Layout, mask: Tensor, sample: int) -> bool:
        hit = layout.samples_first(mask, self._samples).reshape(self._samples, -1).any(1)
        return not bool(hit[:sample].any() or hit[sample + 1 :].any())
