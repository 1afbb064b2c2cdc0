"""Which values of a program lie in the same memory."""

import operator
from collections.abc import Iterator
from typing import Any

import torch
from torch.fx import Graph, Node

__all__ = ["Storages"]

_ALIASING = torch.Tag.maybe_aliasing_or_mutating
_NORMS = (torch.ops.aten.native_batch_norm.default, torch.ops.aten.cudnn_batch_norm.default)
"""Write to running statistics where they train, and their schemas do not say so."""


class Storages:
    """The memory that the values of a program lie in, named by the first value there.

    Attributes:
        written: Memory that an operation writes to.
        returned: Memory that a result of the program lies in.
    """

    def __init__(self, graph: Graph) -> None:
        """Looks at all operations of a program."""
        self._first: dict[Node, Node] = {}
        constants: dict[Any, Node] = {}
        written: set[Node] = set()
        for node in graph.nodes:
            source = _source(node)
            own = constants.setdefault(node.target, node) if node.op == "get_attr" else node
            self._first[node] = own if source is None else self._first[source]
            written |= {self._first[n] for n in _written(node)}
        given = {n for n in self._first.values() if n.op not in ("call_function", "get_attr")}
        # what a program is given may lie anywhere
        self.written = written | given if written & given else written
        *_, output = graph.nodes
        self.returned = {self._first[n] for n in output.all_input_nodes}

    def first(self, node: Node) -> Node:
        """The first value in the memory where a value lies; itself, if it came later."""
        return self._first.get(node, node)

    def join(self, node: Node, first: Node) -> None:
        """Notes that the values where a node was lie in other memory now."""
        moved = {other for other, own in self._first.items() if own is node}
        self._first |= dict.fromkeys(moved, first)
        if node in self.returned:
            self.returned.add(first)


def _source(node: Node) -> Node | None:
    """The value in whose memory a result of an operation lies, if it has none of its own."""
    if node.op != "call_function":
        return None
    if node.target is operator.getitem:
        several: Any = node.args[0]
        return _source(several)
    for argument, value in _arguments(node):
        if argument.alias_info is not None and isinstance(value, Node) and _returns_alias(node):
            return value
    if node.target is torch.ops.aten._unsafe_view.default or _ALIASING in _tags(node):
        return node.all_input_nodes[0]
    return None


def _written(node: Node) -> Iterator[Node]:
    """The values that an operation writes to."""
    for argument, value in _arguments(node):
        if argument.alias_info is not None and argument.alias_info.is_write:
            yield from (value,) if isinstance(value, Node) else value or ()
    if node.target in _NORMS and node.args[5]:
        yield from (own for own in node.args[3:5] if isinstance(own, Node))


def _arguments(node: Node) -> Iterator[tuple[Any, Any]]:
    """What an operation takes, each with what it is given."""
    schema = getattr(node.target, "_schema", None)
    for place, argument in enumerate(schema.arguments if schema else ()):
        if place < len(node.args):
            yield argument, node.args[place]
        elif argument.name in node.kwargs:
            yield argument, node.kwargs[argument.name]


def _returns_alias(node: Node) -> bool:
    target: Any = node.target
    return any(result.alias_info is not None for result in target._schema.returns)


def _tags(node: Node) -> Any:
    return getattr(node.target, "tags", ())
