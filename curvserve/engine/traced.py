"""Operations of a program, and the shapes of what they return."""

from typing import Any

import torch
from torch import Tensor
from torch.fx import Graph, Node
from torch.fx.node import map_arg

__all__ = ["added", "is_mask", "is_random", "like"]


def like(node: Node) -> Tensor | None:
    """A tensor without memory that has shape, strides and type of a value; None if it is none."""
    value = node.meta.get("val")
    if not isinstance(value, Tensor):
        return None
    return torch.empty_strided(value.shape, value.stride(), dtype=value.dtype, device="meta")


def added(graph: Graph, target: Any, *args: Any, **kwargs: Any) -> Node:
    """Adds an operation where the graph inserts, and notes what it returns."""
    node = graph.call_function(target, args, kwargs)
    node.meta["val"] = target(*map_arg(args, like), **map_arg(kwargs, like))
    return node


def is_random(node: Node) -> bool:
    """Whether an operation draws random numbers."""
    return torch.Tag.nondeterministic_seeded in getattr(node.target, "tags", ())


def is_mask(index: Any) -> bool:
    """Whether an index chooses by true and false, so that its values decide how many."""
    value = None if index is None else index.meta.get("val")
    return isinstance(value, Tensor) and value.dtype in (torch.bool, torch.uint8)
