"""Copies of copies in a program, made at once.

Between two products a tensor is cut, turned and copied several times, as each function of a model
wants it: so are the cotangents of queries, keys and values on their way to the one matrix that
projects all of them. Whatever happens on that way, a number of the last copy is one of the tensor
that it began with, at a place that depends on shapes alone.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.fx import Graph, Node

from curvserve.engine.storages import Storages
from curvserve.engine.traced import added

__all__ = ["moved_at_once", "stacked"]

_aten = torch.ops.aten
_VIEWS = (_aten.view.default, _aten._unsafe_view.default)
_TURNS = (_aten.permute.default, _aten.transpose.int, _aten.t.default)
_ONES = (_aten.unsqueeze.default, _aten.squeeze.dim)
_COPY, _STACK = _aten.clone.default, _aten.stack.default
_MOVES = {*_VIEWS, *_TURNS, *_ONES, _COPY}


def stacked(graph: Graph) -> None:
    """Replaces sums of tensors that are zero but for a slice each by the stack of the slices."""
    for node in reversed(graph.find_nodes(op="call_function", target=_aten.add.Tensor)):
        slices: list[Any] = list(_addends(node)) if node.users else [None]
        wholes = {(tuple(s.args[1]), s.args[2]) for s in slices if s is not None}
        if None in slices or len(wholes) > 1:
            continue
        ((shape, axis),) = wholes
        parts = {s.args[3] % shape[axis]: s.args[0] for s in slices}
        if not len(parts) == len(slices) == shape[axis]:
            continue
        with graph.inserting_before(node):
            own = [parts[i] for i in range(shape[axis])]
            made = added(graph, _STACK, own, axis % len(shape))
        _replaced(node, made)


def _addends(node: Node) -> Iterator[Any]:
    """The ``select_backward`` that a sum is made of; None for anything else."""
    for own in (*node.args, *node.kwargs.values()):
        if isinstance(own, Node) and own.target is _aten.select_backward.default:
            yield own
        elif isinstance(own, Node) and own.target is _aten.add.Tensor and len(own.users) == 1:
            yield from _addends(own)
        else:
            yield None


def moved_at_once(graph: Graph) -> None:
    """Replaces copies of what was copied before by copies of what was copied first."""
    storages = Storages(graph)
    for copy in graph.find_nodes(op="call_function", target=_COPY):
        found = _sources(copy, storages)
        if not found or copy.kwargs.get("memory_format") is not torch.contiguous_format:
            continue
        (place, *others) = {arrangement.place for _, arrangement in found}
        if others:
            continue
        with graph.inserting_before(copy):
            own = [_turned(graph, source, arrangement) for source, arrangement in found]
            if place is None:
                again = added(graph, _COPY, own[0], **copy.kwargs)
            else:
                again = added(graph, _STACK, own, place)
            made = added(graph, _VIEWS[0], again, list(_shape(copy)))
        _replaced(copy, made)


def _sources(copy: Node, storages: Storages) -> "list[tuple[Node, _Arrangement]]":
    """What the numbers of a copy come from and how they lie in it; nothing where it is the first.

    Where they come from a stack, each of its tensors is told.
    """
    source, way = _way(copy, storages)
    args: Any = source.args
    if source.target is _STACK and len(args[0]) > 1:
        before = [_way(own, storages) for own in args[0]]
        stack = (args[1] if len(args) > 1 else 0, len(before))
    elif _COPY in [node.target for node in way[:-1]]:
        before, stack = [(source, [])], None
    else:
        return []
    found = [(first, _arranged(first, own, stack, way)) for first, own in before]
    told = [(first, arrangement) for first, arrangement in found if arrangement is not None]
    return told if len(told) == len(found) else []


def _way(node: Node, storages: Storages) -> tuple[Node, list[Node]]:
    """The tensor that numbers come from, and what moved them on the way, first things first."""
    way: list[Node] = []
    while node.target in _MOVES and storages.first(node) not in storages.written:
        way.append(node)
        node = node.args[0]  # type: ignore[assignment] # each has a tensor first
    return node, way[::-1]


@dataclass(eq=False)
class _Part:
    """An axis, or what a view has made of it.

    Attributes:
        size: More than one.
    """

    size: int


@dataclass
class _Arrangement:
    """How the numbers of a tensor are arranged.

    Attributes:
        base: The parts of the tensor's own axes, in its order.
        axes: For each axis of the arrangement the parts that it consists of.
        along: The axis along which several such tensors are stacked.
    """

    base: list[_Part]
    axes: list[list[_Part]]
    along: _Part | None = None

    @property
    def parts(self) -> list[_Part]:
        """All parts in the order of the arrangement."""
        return [part for axis in self.axes for part in axis]

    @property
    def place(self) -> int | None:
        """Where the axis of the stack is among the parts, if there is one."""
        return self.parts.index(self.along) if self.along else None

    def moved(self, node: Node) -> bool:
        """Goes through an operation; False where the parts do not say what becomes of them."""
        count = len(self.axes)
        args: Any = node.args[1:]
        if node.target in _VIEWS:
            return self._viewed(_shape(node))
        if node.target in _TURNS:
            order = list(range(count))
            if node.target is _aten.permute.default:
                order = [d % count for d in args[0]]
            else:
                a, b = args or (0, 1)
                order[a], order[b] = order[b], order[a]
            self.axes = [self.axes[i] for i in order]
        elif node.target is _aten.unsqueeze.default:
            self.axes.insert(args[0] % (count + 1), [])
        elif node.target is _aten.squeeze.dim and not self.axes[args[0]]:
            del self.axes[args[0]]
        return True

    def _viewed(self, shape: Sequence[int]) -> bool:
        waiting, self.axes = self.parts[::-1], []
        for size in shape:
            own: list[_Part] = []
            while (left := size // math.prod(part.size for part in own)) > 1:
                part = waiting.pop()
                if part.size > left:
                    if part.size % left or part is self.along:
                        return False
                    waiting.append(self._split(part, left))
                elif left % part.size:
                    return False
                own.append(part)
            self.axes.append(own)
        return True

    def _split(self, part: _Part, size: int) -> _Part:
        rest = _Part(part.size // size)
        part.size = size
        self.base.insert(self.base.index(part) + 1, rest)
        return rest


def _arranged(
    source: Node, before: Sequence[Node], stack: tuple[int, int] | None, behind: Sequence[Node]
) -> _Arrangement | None:
    """How a tensor's numbers lie in the end; None where shapes do not tell.

    Args:
        source: The tensor.
        before: What it goes through before it is stacked.
        stack: Along which axis it is stacked, and how many there are, if it is.
        behind: What it goes through then.
    """
    shape = _shape(source)
    if not all(shape) or not source.meta:
        return None
    axes = [[_Part(size)] if size > 1 else [] for size in shape]
    found = _Arrangement([part for axis in axes for part in axis], axes)
    if not all(found.moved(node) for node in before):
        return None
    if stack is not None:
        axis, count = stack
        found.along = _Part(count)
        found.axes.insert(axis % (len(found.axes) + 1), [found.along])
    return found if all(found.moved(node) for node in behind) else None


def _turned(graph: Graph, source: Node, found: _Arrangement) -> Node:
    """A tensor with its parts as axes, in their order in the end."""
    cut = added(graph, _VIEWS[0], source, [part.size for part in found.base])
    order = [found.base.index(part) for part in found.parts if part is not found.along]
    return added(graph, _aten.permute.default, cut, order)


def _shape(node: Node) -> Any:
    value = node.meta.get("val")
    return () if value is None else value.shape


def _replaced(node: Node, made: Node) -> None:
    node.replace_all_uses_with(made)
    node.graph.erase_node(node)
