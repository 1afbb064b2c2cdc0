"""Decides, once for each structure of graph, what a sample is and who accounts for what."""

from collections.abc import Hashable, Iterator
from dataclasses import dataclass
from weakref import WeakKeyDictionary

from torch import Tensor, nn
from torch.autograd.graph import GradientEdge

from curvserve.engine.accounts import Account, Accounting
from curvserve.engine.errors import (
    EngineError,
    MixedSamplesError,
    NotRecordedError,
    UncoveredParameterError,
)
from curvserve.engine.graph import Graph
from curvserve.engine.samples import Layout, locate

__all__ = ["Account", "Plan", "plan"]

_PLANS_KEPT = 32


@dataclass(frozen=True)
class Plan:
    """How per-sample rows are had from a graph.

    Attributes:
        samples: The number N of samples.
        layout: Where they lie in the model's output.
        accounts: Which call accounts for which parameters.
    """

    samples: int
    layout: Layout
    accounts: tuple[Account, ...]


_plans: "WeakKeyDictionary[nn.Module, dict[Hashable, Plan]]" = WeakKeyDictionary()


def plan(graph: Graph, output: GradientEdge, like: Tensor) -> Plan:
    """The plan for a graph, from the cache where one of the same structure was seen before.

    Args:
        graph: What was read off the autograd graph.
        output: The edge of the model's output.
        like: The output itself.

    Raises:
        NotRecordedError: The graph holds no recorded call.
        MixedSamplesError: The samples of the batch influence each other.
        UncoveredParameterError: A parameter is used where no call accounts for it.
    """
    if not graph.calls:
        raise NotRecordedError(
            "the loss does not depend on any extended module: call extend(model) before the "
            "forward pass, and run that pass with gradients enabled (of a compiled model, extend "
            "what torch.compile returns)"
        )
    first = min(graph.calls, key=lambda c: (c.call.start, -c.call.end)).call.module
    known = _plans.setdefault(first, {})
    signature = (graph.signature, like.shape)
    if signature in known:
        return known[signature]
    made, certain = _make(graph, output, like)
    if certain:
        if len(known) >= _PLANS_KEPT:
            known.clear()
        known[signature] = made
    return made


def _make(graph: Graph, output: GradientEdge, like: Tensor) -> tuple[Plan, bool]:
    if "CheckpointFunctionBackward" in graph.operations:
        raise UncoveredParameterError(
            "a part of the model runs under torch.utils.checkpoint with use_reentrant=True, which "
            "hides its parameters from the graph: use checkpoint(..., use_reentrant=False)"
        )
    refusal: EngineError | None = None
    for samples, layout in _groupings(graph, like):
        edges = [edge for recorded in graph.calls for edge in recorded.edges.values()]
        located, certain = locate(output, like, layout, samples, edges)
        if samples != len(like) and not _evident(graph, located, samples, len(like)):
            continue
        found = iter(located)
        layouts = [{index: next(found) for index in recorded.edges} for recorded in graph.calls]
        try:
            accounts = Accounting(graph, layouts, samples).accounts()
        except (MixedSamplesError, UncoveredParameterError) as error:
            refusal = refusal or error
        else:
            return Plan(samples, layout, accounts), certain
    assert refusal is not None
    raise refusal


def _groupings(graph: Graph, like: Tensor) -> Iterator[tuple[int, Layout]]:
    """What the samples may be: first each line of the output, then groups of lines.

    A language model's loss reads tokens as lines, ``[B * T, C]``, but its samples are sequences.
    """
    lines = like.shape[0]
    yield lines, Layout()
    sizes = {size for c in graph.calls for t in c.call.tensors() for size in t.shape}
    first = min(graph.calls, key=lambda c: (c.call.start, -c.call.end)).call.tensors()
    alone = bool(first) and all(t.dim() > 1 and 1 in t.shape[:2] for t in first)
    for samples in sorted(sizes | ({1} if alone else set()), reverse=True):
        if samples < lines and lines % samples == 0 and (samples > 1 or alone):
            yield samples, Layout(0, 1, lines // samples)
            yield samples, Layout(0, lines // samples, 1)


def _evident(graph: Graph, found: list[Layout | None], samples: int, lines: int) -> bool:
    """Whether something in the model has one entry for each group of lines.

    If nothing has, the groups are an accident of numbers: the loss may read some lines only.
    """
    if samples == 1 or any(layout and layout.outer == layout.inner == 1 for layout in found):
        return True
    shapes = [t.shape[:2] for c in graph.calls for t in c.call.tensors() if t.dim() > 1]
    return any(samples in shape and shape.numel() == lines for shape in shapes)
