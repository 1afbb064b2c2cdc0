"""Programs with fewer operations, and with less memory, for the same numbers.

What torch writes down is what autograd does, layer by layer: it copies copies, adds up tensors
that are zero but for a slice, and rectifies maps three quarters of which a pool then drops. What
is changed here moves numbers, or leaves out sums with zero, and computes nothing in another order:
the bits are those of the eager pass, but for the sign of a zero.
"""

import itertools
import operator
from typing import Any

import torch
from torch.fx import Graph, GraphModule, Node

from curvserve.engine.convolutions import INPUTS
from curvserve.engine.movements import moved_at_once, stacked
from curvserve.engine.storages import Storages
from curvserve.engine.traced import added, is_random, like

__all__ = ["pooled_first", "shortened"]

_aten = torch.ops.aten
_RELU, _MASK = _aten.relu.default, _aten.threshold_backward.default
_POOL = _aten.max_pool2d_with_indices.default
_POOL_BACKWARD = _aten.max_pool2d_with_indices_backward.default

_RESHAPES = {
    *(_aten.view.default, _aten._unsafe_view.default, _aten.permute.default, _aten.t.default),
    *(_aten.transpose.int, _aten.unsqueeze.default, _aten.squeeze.dim),
}

_IN_PLACE = {
    _RELU: _aten.relu_.default,
    _aten.add.Tensor: _aten.add_.Tensor,
    _aten.mul.Tensor: _aten.mul_.Tensor,
    _MASK: _aten.threshold_backward.grad_input,
}
"""What may be written over the first argument."""

_OWN_MEMORY = {
    *(_aten.mm.default, _aten.addmm.default, _aten.bmm.default, _aten.convolution.default),
    *(_aten.convolution_backward.default, _aten.native_layer_norm_backward.default),
    *(_POOL, _POOL_BACKWARD, _aten.add.Tensor, _aten.mul.Tensor, _MASK, INPUTS),
}
"""What returns nothing but tensors in memory of their own."""


_FIRST, _ENDS = ("placeholder", "call_method"), {"output"}


def pooled_first(program: GraphModule) -> None:
    """Rectifies maps after their pooling, and cotangents before: for most, a quarter of the work.

    The largest of rectified numbers is the largest, rectified. Where that is zero, another may be
    the first of the largest; but then no cotangent gets through to it.
    """
    graph = program.graph
    for pool in graph.find_nodes(op="call_function", target=_POOL):
        relu: Any = pool.args[0]
        back = [node for node in relu.users if node.target is _POOL_BACKWARD]
        masks = [mask for node in back for mask in node.users]
        pooled = [node for node in pool.users if node.args[1] == 0]
        alone = set(relu.users) == {pool, *back, *masks}
        if relu.target is _RELU and alone and pooled and all(_is_mask(m, relu) for m in masks):
            _exchange(graph, relu, pool, pooled[0], back)
    program.recompile()


def _is_mask(node: Node, relu: Node) -> bool:
    own: Any = node.args[0]
    return node.target is _MASK and own.target is _POOL_BACKWARD and node.args[1:] == (relu, 0)


def _exchange(graph: Graph, relu: Node, pool: Node, pooled: Node, back: list[Node]) -> None:
    whole = relu.args[0]
    pool.args = (whole, *pool.args[1:])
    with graph.inserting_after(pooled):
        small = added(graph, _RELU, pooled)
    pooled.replace_all_uses_with(small, lambda user: user is not small)
    for node in back:
        with graph.inserting_before(node):
            mask = added(graph, _MASK, _laid_as(graph, node.args[0], small), small, 0)
        for old in list(node.users):
            old.replace_all_uses_with(node)
            graph.erase_node(old)
        node.args = (mask, whole, *node.args[2:])
    graph.erase_node(relu)


def _laid_as(graph: Graph, node: Any, other: Node) -> Node:
    """The same numbers as they lie in maps with their channels last; the pool would do it later.

    To go through two orders of the same numbers side by side takes four times as long as a copy.
    """
    value, wanted = like(node), like(other)
    own: Node = node
    if value is None or wanted is None or value.stride() == wanted.stride():
        return own
    if not wanted.is_contiguous(memory_format=torch.channels_last):
        return own
    return added(graph, _aten.clone.default, node, memory_format=torch.channels_last)


def shortened(program: GraphModule) -> GraphModule:
    """Leaves out what is not used or was there before; writes over what is not used any more."""
    graph = program.graph
    graph.eliminate_dead_code()
    _as_it_was(graph)
    stacked(graph)
    moved_at_once(graph)
    graph.eliminate_dead_code()
    _once(graph)
    _soon(graph)
    _written_over(graph)
    program.recompile()
    return program


def _as_it_was(graph: Graph) -> None:
    """Leaves out views that bring back a shape, and slices and splits that take everything."""
    for node in graph.nodes:
        if node.op != "call_function":
            continue
        known = _before(node)
        if known is not None:
            node.replace_all_uses_with(known)


def _before(node: Node) -> Node | None:
    """What a view is the same as."""
    source: Any = node.args[0] if node.args else None
    if node.target is _aten.slice.Tensor:
        return source if _layout(source) == _layout(node) is not None else None
    while isinstance(source, Node) and node.target in _RESHAPES:
        if _layout(source) == _layout(node) is not None:
            return source
        if source.target not in _RESHAPES:
            break
        source = source.args[0]
    return None


def _layout(node: Node) -> Any:
    value = like(node)
    return None if value is None else (value.shape, value.stride(), value.dtype)


def _once(graph: Graph) -> None:
    """Computes element-wise functions and views of the same values once."""
    storages, known = Storages(graph), dict[Any, Node]()
    for node in graph.nodes:
        if node.op != "call_function" or not _is_plain(node):
            continue
        memory = {storages.first(n) for n in (node, *node.all_input_nodes)}
        if memory & storages.written or storages.first(node) in storages.returned:
            continue
        key = (node.target, repr(node.args), repr(node.kwargs))
        if known.setdefault(key, node) is not node:
            node.replace_all_uses_with(known[key])
            graph.erase_node(node)


def _is_plain(node: Node) -> bool:
    tags = getattr(node.target, "tags", ())
    return node.target in _RESHAPES or (torch.Tag.pointwise in tags and not is_random(node))


def _soon(graph: Graph) -> None:
    """Has one result computed after the other, each with what it needs and was not there before.

    So what is made of a layer's cotangents is made while they are in the cache.
    """
    before = _order(graph)
    results = [n for n in before if not n.users or not {u.op for u in n.users}.isdisjoint(_ENDS)]
    done: dict[Node, None] = {}
    waiting = results[::-1]
    while waiting:
        left = sorted(before[waiting[-1]] - done.keys(), reverse=True)
        if left and waiting[-1] not in done:
            waiting += left
        else:
            done[waiting.pop()] = None
    for one, other in itertools.pairwise(done):
        one.append(other)


def _order(graph: Graph) -> dict[Node, set[Node]]:
    """For each operation those that have to come before."""
    storages, last = Storages(graph), dict[Any, Node]()
    found: dict[Node, set[Node]] = {}
    for node in graph.nodes:
        touched: set[Any] = {storages.first(n) for n in (node, *node.all_input_nodes)}
        touched &= storages.written
        if node.op in _FIRST or is_random(node):
            touched.add("in order")
        found[node] = set(node.all_input_nodes) | {last[t] for t in touched if t in last}
        last |= dict.fromkeys(touched, node)
    return found


def _written_over(graph: Graph) -> None:
    """Writes results of element-wise functions over an argument that nobody reads any more."""
    storages, nodes = Storages(graph), list(graph.nodes)
    last = {storages.first(n): node for node in nodes for n in node.all_input_nodes}
    for node in nodes:
        source: Any = node.args[0] if node.target in _IN_PLACE else None
        if not isinstance(source, Node) or _layout(source) != _layout(node):
            continue
        first = storages.first(source)
        others = {storages.first(n) for n in node.all_input_nodes if n is not source}
        if first in others or last[first] is not node or not _is_whole(source, first):
            continue
        if first in storages.returned:
            continue
        node.target = _IN_PLACE[node.target]
        if node.target is _MASK.overloadpacket.grad_input:
            node.kwargs = {"grad_input": source}
        last[first] = last.get(node, node)
        storages.join(node, first)


def _is_whole(node: Node, first: Node) -> bool:
    """Whether a value is all that lies in its memory, which is the program's own."""
    made: Any = first.args[0] if first.target is operator.getitem else first
    value, whole = like(node), like(first)
    if value is None or whole is None or made.target not in _OWN_MEMORY:
        return False
    return (value.numel(), value.dtype) == (whole.numel(), whole.dtype)
