"""Records each call of an extended module on the graph that the call builds.

The record lies in the metadata of the graph node that made the module's output, so it lives
exactly as long as the graph: nothing leaks, nothing is stale, and any number of forward passes
can be in flight. The node is taken inside the forward hook, because an in-place operation after
the layer gives the output tensor another node.
"""

import itertools
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, cast
from weakref import WeakSet

import torch
from torch import Tensor, nn
from torch._C._autograd import _get_sequence_nr
from torch.autograd.graph import Node
from torch.utils._pytree import tree_leaves, tree_map_only

from curvserve.engine import context, layers

__all__ = ["Call", "attached", "calls_ending_at", "is_attached", "map_call", "record_module"]

_KEY, _MAPS = "curvserve.calls", "curvserve.maps"
_order = itertools.count()


@dataclass(eq=False, slots=True, weakref_slot=True)
class Call:
    """One call of a module, as far as it is needed to go back through it.

    Attributes:
        module: What was called.
        args: Its positional arguments, tensors detached.
        kwargs: Its keyword arguments, tensors detached.
        start: The first autograd sequence number that a node made by this call can have.
        end: One more than the last.
        order: Rank among all recorded calls by the time they ended: inner before outer.
        outputs: The tensors among the call's results, detached; empty where the module's own
            rule never needs them.
        versions: The version counters of the tensors in ``args``, ``kwargs`` and ``outputs``.
        differentiated: Whether a backward pass with ``create_graph=True`` came by its results.
        searched: Whether linear maps inside of it are layers of their own, see :mod:`.maps`.
        rule: Of a linear map that was found so, its rule.
    """

    module: nn.Module
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    start: int
    end: int
    order: int = field(default_factory=lambda: next(_order))
    outputs: tuple[Tensor, ...] = ()
    versions: tuple[int, ...] = ()
    differentiated: bool = False
    searched: bool = False
    rule: layers.LayerRule | None = None

    def tensors(self) -> list[Tensor]:
        """All tensors in the arguments, in a fixed order."""
        return [t for t in tree_leaves((self.args, self.kwargs)) if isinstance(t, Tensor)]

    def unchanged(self) -> bool:
        """Whether no recorded tensor was modified in place since the call."""
        return self.versions == _versions(self.tensors(), self.outputs)

    def encloses(self, sequence: int) -> bool:
        """Whether the node with this autograd sequence number was made during the call."""
        return self.start <= sequence < self.end


def _versions(inputs: list[Tensor], outputs: tuple[Tensor, ...]) -> tuple[int, ...]:
    return tuple(t._version for t in (*inputs, *outputs) if not t.is_inference())


def calls_ending_at(node: Node) -> list[tuple[Call, int, int]]:
    """The recorded calls with an output made by ``node``.

    Returns:
        Triples of the call, the index of the tensor among the call's results, and the index of
        the tensor among the node's outputs.
    """
    calls: list[tuple[Call, int, int]] = _metadata(node).get(_KEY, [])
    return calls


def map_call(node: Node, module: nn.Module, rule: layers.LayerRule, a: Tensor) -> Call:
    """The call that stands for a linear map: one for each, while anyone who read the graph has it.

    Args:
        node: The node that makes its result.
        module: The module that owns its parameters.
        rule: The rule.
        a: Its input.
    """
    known: WeakSet[Call] = _metadata(node).setdefault(_MAPS, WeakSet())
    for call in known:
        if call.module is module and call.rule == rule:
            return call
    start = node._sequence_nr()
    made = Call(module, (a,), {}, start, start + 1, order=-1, versions=_versions([a], ()))
    made.rule = rule
    known.add(made)
    return made


def _metadata(node: Node) -> dict[str, Any]:
    metadata: Any = node.metadata  # declared as a method, but a property
    return cast(dict[str, Any], metadata)


class _Starts(threading.local):
    """Where the calls now running in this thread began, by the identity of their module.

    A plain dict, overwritten by each call: a forward pass that raises leaves no stale entry
    behind that a later call could mistake for its own.
    """

    def __init__(self) -> None:
        self.at: dict[int, int] = {}


_starts = _Starts()


def _before_forward(module: nn.Module, args: tuple[Any, ...]) -> None:
    if torch.is_grad_enabled() and context.recording():
        _starts.at[id(module)] = _get_sequence_nr()


def _after_forward(
    module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any
) -> None:
    if not torch.is_grad_enabled() or torch.compiler.is_compiling() or not context.recording():
        return
    start = _starts.at.pop(id(module), None)
    results = [t for t in tree_leaves(output) if isinstance(t, Tensor)]
    if start is None or not any(t.grad_fn is not None for t in results):
        return
    rule = layers.find(module)
    call = Call(
        module,
        tree_map_only(Tensor, Tensor.detach, args),
        tree_map_only(Tensor, Tensor.detach, kwargs),
        start,
        _get_sequence_nr(),
        outputs=() if rule else tuple(t.detach() for t in results),
        searched=not rule and not isinstance(module, nn.RNNBase),
    )
    call.versions = _versions(call.tensors(), call.outputs)
    for index, result in enumerate(results):
        if result.grad_fn is not None:
            entries = _metadata(result.grad_fn).setdefault(_KEY, [])
            entries.append((call, index, result.output_nr))


def is_attached(module: nn.Module) -> bool:
    """Whether calls of ``module`` are recorded."""
    return _after_forward in module._forward_hooks.values()


def record_module(module: nn.Module) -> list[Any]:
    """Begins to record the calls of ``module`` and of everything in it that holds parameters.

    Args:
        module: The model. Modules that are recorded already are left as they are.

    Returns:
        The handles of the hooks that were added, for :func:`attached` to remove.
    """
    handles = []
    for inner in module.modules():
        if is_attached(inner) or next(inner.parameters(), None) is None:
            continue
        # Before all other hooks, so that what they compute (weight_norm, say) counts as the call's.
        handles.append(inner.register_forward_pre_hook(_before_forward, prepend=True))
        handles.append(inner.register_forward_hook(_after_forward, with_kwargs=True))
    return handles


@contextmanager
def attached(module: nn.Module) -> Iterator[None]:
    """Records the calls of ``module`` for the length of the block only."""
    handles = record_module(module)
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
