"""Finds linear maps by parameters of modules without a rule: ``F.linear`` in anyone's ``forward``.

In the graph they are layers of their own, attention's projections too: the product knows its
input, and autograd brings the cotangent to its result. So are sums with a parameter that has no
axis for the samples, such as a table of positions. A module that makes nothing else of its
parameters is never replayed, and may draw random numbers.
"""

import math
from bisect import bisect
from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import Node

from curvserve.engine.layers.affine import Affine, Broadcast
from curvserve.engine.recording import Call, map_call

__all__ = ["LEADS", "Consumer", "linear_maps"]

Consumer = tuple[Node, int, int]
"""A node that takes something in, as which of its inputs, and which result of the producer."""

_CAST, _TURN = "ToCopyBackward0", "TBackward0"
_SPLITS = ("SplitBackward0", "SplitWithSizesBackward0")
_BROADCASTS = frozenset({"AddBackward0", "ExpandBackward0", "RepeatBackward0"})
_PRODUCTS = {"MmBackward0": (1, "_saved_self"), "AddmmBackward0": (2, "_saved_mat1")}
"""Which input is the matrix, and by what name the other factor is saved."""

LEADS = frozenset({_CAST, _TURN, *_SPLITS})
"""The nodes that can lie between a parameter and its map."""


@dataclass(frozen=True, eq=False)
class _Map:
    """Some lines of a parameter as the matrix or the shift of a linear map.

    Attributes:
        node: The node that makes the result.
        owner: The call in which it lies, of a module that owns the parameter.
        parameter: The parameter.
        lines: The lines.
        input: What the matrix is applied to; for a shift a blank.
    """

    node: Node
    owner: Call
    parameter: Tensor
    lines: range
    input: Tensor


def linear_maps(
    calls: Sequence[Call],
    entries: Sequence[tuple[Tensor, Consumer]],
    consumers: Mapping[Node, Sequence[Consumer]],
) -> tuple[list[tuple[Node, Call]], list[tuple[Tensor, int]]]:
    """Takes the linear maps out of the calls of modules without a rule.

    Args:
        calls: The recorded calls.
        entries: The parameters, and what takes each in.
        consumers: For each node of ``LEADS`` what takes in its results.

    Returns:
        For each node that makes the result of a map a call that stands for it; and all uses of
        parameters with the sequence number of the node, where a use is a map of that node.
    """
    closed = sorted((call.start, call.end) for call in calls if not call.searched)
    maps: dict[Hashable, list[_Map]] = {}
    uses: list[tuple[Tensor, int]] = []
    for parameter, entry in entries:
        sequence = entry[0]._sequence_nr()
        before = bisect(closed, (sequence, math.inf)) - 1
        layer = before >= 0 and sequence < closed[before][1]
        found = [None] if layer else list(_maps(parameter, entry, consumers, calls))
        if not all(found):
            uses.append((parameter, sequence))
            continue
        for each in found:
            assert each is not None
            uses.append((parameter, each.node._sequence_nr()))
            alone = each.node.name() in _BROADCASTS
            key = each.node, each.owner, parameter if alone else None
            maps.setdefault(key, []).append(each)
    return [(own[0].node, _call(own)) for own in maps.values()], uses


def _maps(
    parameter: Tensor,
    entry: Consumer,
    consumers: Mapping[Node, Sequence[Consumer]],
    calls: Sequence[Call],
) -> Iterator[_Map | None]:
    """The maps that one use of a parameter leads to, None for whatever else it leads to."""
    if not parameter.dim():
        yield None
        return
    for node, lines in _ends(entry, consumers, range(len(parameter)), parameter.dim() > 1):
        owner = _owner(parameter, node, calls)
        a = _input(parameter, node, lines) if owner else None
        yield None if owner is None or a is None else _Map(node, owner, parameter, lines, a)


def _ends(
    at: tuple[Any, int, int],
    consumers: Mapping[Node, Sequence[Consumer]],
    lines: range,
    matrix: bool,
    turned: bool = False,
) -> Iterator[tuple[Node, range]]:
    """The nodes that take in some lines of a parameter, as a matrix (transposed) or a shift.

    Where it goes elsewhere, there are no lines of it.
    """
    node, index, _ = at
    name = node.name()
    if name in LEADS and not (name in _SPLITS and (turned or node._saved_dim)):
        for consumer in consumers[node]:
            part = lines[_chosen(node, consumer[2])] if name in _SPLITS else lines
            yield from _ends(consumer, consumers, part, matrix, turned != (name == _TURN))
        return
    if name in _PRODUCTS:
        right = turned == matrix and index == (_PRODUCTS[name][0] if matrix else 0)
    else:
        right = name in _BROADCASTS and not turned
    yield node, lines if right else lines[:0]


def _chosen(node: Any, number: int) -> slice:
    """Which lines one result of a split has."""
    if node.name() == _SPLITS[0]:
        return slice(number * node._saved_split_size, (number + 1) * node._saved_split_size)
    start = sum(node._saved_split_sizes[:number])
    return slice(start, start + node._saved_split_sizes[number])


def _owner(parameter: Tensor, node: Node, calls: Sequence[Call]) -> Call | None:
    """The innermost call around a node whose module owns a parameter, if it can be taken apart."""
    around = [call for call in calls if call.encloses(node._sequence_nr())]
    for call in sorted(around, key=lambda c: (c.end - c.start, c.order)):
        if not call.searched:
            return None
        if any(p is parameter for p in call.module.parameters()):
            return call
    return None


def _input(parameter: Tensor, node: Any, lines: range) -> Tensor | None:
    """What the map is applied to; for a shift a blank of the result's shape.

    None where it is no map, or its input was modified since or is not kept (checkpointing).
    """
    name, shape = node.name(), node._input_metadata[0].shape
    own = (len(lines), *parameter.shape[1:])
    scaled = any(getattr(node, factor, 1) != 1 for factor in ("_saved_alpha", "_saved_beta"))
    twice = len({child for child, _ in node.next_functions}) < len(node.next_functions)
    if scaled or twice or not lines or len(shape) < max(2, len(own)):
        return None
    if name in _BROADCASTS or parameter.dim() == 1:
        behind = shape[len(shape) - len(own) :]
        alike = all(size in (1, whole) for size, whole in zip(own, behind, strict=True))
        fits = alike and (name in _BROADCASTS or own[0] == shape[-1])
        return parameter.detach().new_zeros(()).expand(shape) if fits else None
    saved = _PRODUCTS[name][1]
    if getattr(node, f"_raw{saved}").unpack_hook:
        return None
    try:
        a: Tensor | None = getattr(node, saved)
    except RuntimeError:  # torch says so
        return None
    if a is None or a.layout != torch.strided or a.device != parameter.device:
        return None
    return a.detach()


def _call(maps: Sequence[_Map]) -> Call:
    """The call that stands for maps with the same result."""
    node, module = maps[0].node, maps[0].owner.module
    matrices = [m.input for m in maps if m.parameter.dim() == 2]
    names: dict[Tensor, str] = {p: name for name, p in module.named_parameters()}
    lines = tuple((names[m.parameter], m.lines) for m in maps)
    rule = (Broadcast if node.name() in _BROADCASTS else Affine)(lines)
    return map_call(node, module, rule, (*matrices, maps[0].input)[0])
