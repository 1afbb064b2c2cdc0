"""Reads the recorded calls and the uses of parameters off an autograd graph."""

from collections.abc import Hashable, Iterable, Iterator
from dataclasses import dataclass, field
from weakref import ref

from torch import Tensor
from torch.autograd.graph import GradientEdge, Node
from torch.utils.weak import WeakIdRef

from curvserve.engine.maps import LEADS, Consumer, linear_maps
from curvserve.engine.recording import Call, calls_ending_at

__all__ = ["Connection", "Graph", "RecordedCall", "Use", "nodes", "read"]


@dataclass(eq=False)
class RecordedCall:
    """A recorded call together with its place in the graph.

    Attributes:
        call: The record.
        edges: For the index of each tensor among the call's results that the graph holds, its edge.
    """

    call: Call
    edges: dict[int, GradientEdge] = field(default_factory=dict)


@dataclass(frozen=True)
class Use:
    """One place where a parameter enters the graph.

    Attributes:
        parameter: The leaf.
        sequence: The sequence number of the node that takes it in.
    """

    parameter: Tensor
    sequence: int


@dataclass(frozen=True)
class Connection:
    """A node together with one that takes in its result.

    Attributes:
        producer: The node.
        output: Which of its results.
        consumer: The sequence number of the node that takes in its result.
    """

    producer: Node
    output: int
    consumer: int


@dataclass
class Graph:
    """What one traversal finds.

    Attributes:
        calls: The recorded calls, in the order in which they are met going backward; then the
            linear maps found in those that have no rule.
        uses: The uses of parameters.
        connections: All connections between inner nodes.
        signature: Equal for graphs of equal structure, shapes and module states.
        operations: The names of the kinds of nodes.
        root: The edge that the traversal began at.
    """

    calls: list[RecordedCall]
    uses: list[Use]
    connections: list[Connection]
    signature: Hashable
    operations: frozenset[str]
    root: GradientEdge

    def around(self, sequence: int) -> list[RecordedCall]:
        """The calls during which a node was made, innermost first."""
        enclosing = [c for c in self.calls if c.call.encloses(sequence)]
        return sorted(enclosing, key=lambda c: (c.call.end - c.call.start, c.call.order))

    def is_root(self, edge: GradientEdge) -> bool:
        """Whether the traversal began at this edge."""
        return (edge.node, edge.output_nr) == (self.root.node, self.root.output_nr)


def read(root: GradientEdge) -> Graph:
    """Traverses the graph behind ``root``.

    Args:
        root: The edge of the model's output.

    Returns:
        The recorded calls and uses found, in a deterministic order.
    """
    calls: dict[Call, RecordedCall] = {}
    entries: list[tuple[Tensor, Consumer]] = []
    consumers: dict[Node, list[Consumer]] = {}
    connections: list[Connection] = []
    shape: list[Hashable] = [root.output_nr]
    operations: set[str] = set()
    for node in nodes(root.node):
        name = node.name()
        shape.append(_RESHAPES.get(name, name))
        operations.add(name)
        for call, index, number in calls_ending_at(node):
            recorded = calls.setdefault(call, RecordedCall(call))
            recorded.edges[index] = GradientEdge(node, number)
        sequence = node._sequence_nr()
        for index, (child, number) in enumerate(node.next_functions):
            if child is None:
                shape.append(None)
            elif (kind := child.name()) == _LEAF:
                parameter = child.variable  # type: ignore[attr-defined] # AccumulateGrad alone has it
                entries.append((parameter, (node, index, number)))
                shape.append(WeakIdRef(parameter))
            else:
                connections.append(Connection(child, number, sequence))
                shape.append(number)
                if kind in LEADS:
                    consumers.setdefault(child, []).append((node, index, number))
    found, uses = linear_maps(list(calls), entries, consumers)
    for made, call in found:
        calls[call] = RecordedCall(call, {0: GradientEdge(made, 0)})
    shape.extend(_state(recorded.call) for recorded in calls.values())
    used = [Use(*use) for use in uses]
    return Graph(list(calls.values()), used, connections, tuple(shape), frozenset(operations), root)


_LEAF = "torch::autograd::AccumulateGrad"
_RESHAPES = {"ReshapeAliasBackward0": "ViewBackward0"}
"""What a `reshape` is called by torch, and by torch while it writes down what it does."""


def nodes(*roots: Node, until: Iterable[Node | None] = ()) -> Iterator[Node]:
    """All inner nodes, each once, depth first; none of ``until`` or found behind these alone."""
    seen = set(until)
    stack = [root for root in dict.fromkeys(roots) if root not in seen]
    seen.update(stack)
    while stack:
        node = stack.pop()
        yield node
        for child, _ in node.next_functions:
            if child is not None and child not in seen and child.name() != _LEAF:
                seen.add(child)
                stack.append(child)


def _state(call: Call) -> Hashable:
    """What, beside the graph, decides how the call treats its samples."""
    shapes = tuple(t.shape for t in call.tensors())
    return ref(call.module), call.rule, shapes, tuple(m.training for m in call.module.modules())
