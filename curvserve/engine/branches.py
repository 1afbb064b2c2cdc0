"""A program that decides half way which of two ways it goes on.

Two programs that begin with the same operations are cut where they part. The first half runs, its
caller looks at what it has found, and one of the two others runs on with the values at the cut.
"""

from collections.abc import Callable, Sequence

from torch import Tensor
from torch.fx import Graph, GraphModule, Node

from curvserve.engine.rewriting import shortened

__all__ = ["Cut", "cut"]

Rest = Callable[[list[Tensor]], list[Tensor]]


class Cut:
    """Two programs with a common beginning.

    Attributes:
        beginning: Takes the arguments, and returns what is looked at followed by all values that
            are needed behind the cut.
    """

    def __init__(
        self,
        beginning: Callable[..., list[Tensor]],
        looked_at: int,
        rests: Sequence[tuple[Rest, Sequence[int]]],
    ) -> None:
        """Takes the pieces; see :func:`cut`."""
        self._beginning, self._looked_at, self._rests = beginning, looked_at, rests

    def begin(self, *arguments: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        """Runs to the cut.

        Returns:
            What is looked at, and what :meth:`go_on` takes.
        """
        found = self._beginning(*arguments)
        return found[: self._looked_at], found[self._looked_at :]

    def go_on(self, way: int, values: list[Tensor]) -> list[Tensor]:
        """Runs one of the programs to its end.

        Args:
            way: Which.
            values: Those at the cut; emptied, so that each can be let go after its last use.
        """
        rest, needed = self._rests[way]
        own = [values[i] for i in needed]
        values.clear()
        return rest(own)


def cut(programs: Sequence[GraphModule], looked_at: int) -> Cut:
    """Cuts programs behind the last operation that makes a value to look at.

    Args:
        programs: Each returns a list; its last ``looked_at`` entries are to be looked at.
        looked_at: How many.

    Raises:
        ValueError: The programs do not begin alike.
    """
    lists = [list(program.graph.nodes) for program in programs]
    ends = [max(map(nodes.index, _results(nodes)[-looked_at:])) + 1 for nodes in lists]
    heads = {tuple(map(_operation, nodes[: ends[0]])) for nodes in lists}
    if len(set(ends)) > 1 or len(heads) > 1:
        raise ValueError("the ways of the program do not begin alike")
    end = ends[0]
    tails = [_tail(nodes, end, looked_at) for nodes in lists]
    needed = sorted({i for _, own in tails for i in own})
    first = lists[0]
    shown = [first.index(node) for node in _results(first)[-looked_at:]]
    head = _piece(first[:end], [first[i] for i in [*shown, *needed]])
    rests = [
        (shortened(GraphModule(program, graph)), [needed.index(i) for i in own])
        for program, (graph, own) in zip(programs, tails, strict=True)
    ]
    return Cut(shortened(GraphModule(programs[0], head)), looked_at, rests)


def _operation(node: Node) -> str:
    return f"{node.name} = {node.op} {node.target} {node.args} {node.kwargs}"


def _results(nodes: Sequence[Node]) -> list[Node]:
    results: list[Node] = list(nodes[-1].args[0])  # type: ignore[arg-type] # of the output node
    return results


def _piece(nodes: Sequence[Node], results: Sequence[Node]) -> Graph:
    graph = Graph()
    known: dict[Node, Node] = {}
    for node in nodes:
        known[node] = graph.node_copy(node, known.__getitem__)
    graph.output([known[node] for node in results])
    graph.eliminate_dead_code()
    return graph


def _tail(nodes: Sequence[Node], end: int, looked_at: int) -> tuple[Graph, list[int]]:
    """What follows a cut as a function of a list, which it empties, and what that has to hold."""
    behind, results = nodes[end:-1], _results(nodes)[:-looked_at]
    users = {node for other in behind for node in other.all_input_nodes} | set(results)
    graph = Graph()
    box = graph.placeholder("values")
    known = {node: graph.call_method("pop", (box,)) for node in nodes[:end] if node in users}
    for node, popped in known.items():
        popped.meta = dict(node.meta)
    for node in behind:
        known[node] = graph.node_copy(node, known.__getitem__)
    graph.output([known[node] for node in results])
    graph.eliminate_dead_code()
    left = set(graph.nodes)
    # the last entry is popped first
    return graph, [i for i, node in enumerate(nodes[:end]) if known.get(node) in left][::-1]
