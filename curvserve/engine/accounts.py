"""Decides which call accounts for which parameter.

Every use of a parameter lies inside some recorded call. The innermost call that owns the
parameter, and whose samples can be told apart, accounts for it: by the rule of its layer kind,
or by being replayed. So a parameter that a container uses itself, or that a parent reads from its
child without calling it, is found with its container or parent. What no call can account for is
refused, so that no set of results is ever partly filled.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.utils.weak import WeakIdKeyDictionary

from curvserve.engine import layers
from curvserve.engine.errors import EngineError, MixedSamplesError, UncoveredParameterError
from curvserve.engine.graph import Graph, RecordedCall
from curvserve.engine.layers.affine import OfLines
from curvserve.engine.layers.generic import Replay, replay
from curvserve.engine.layers.recurrent import RecurrentReplay
from curvserve.engine.recording import Call
from curvserve.engine.samples import Layout

__all__ = ["Account", "Accounting", "watch"]

_watched = WeakIdKeyDictionary()


def watch(module: nn.Module) -> None:
    """Notes the parameters of an extended module: any use of them must be accounted for."""
    for name, parameter in module.named_parameters():
        _watched[parameter] = name


@dataclass(frozen=True)
class Account:
    """What one call accounts for.

    Attributes:
        call: The index of the call in :attr:`Graph.calls`.
        names: The parameters, by their names in the called module.
        way: The rule of the layer kind, or the way to replay the call.
        layout: Where the samples lie in the input and output (of a call with a rule).
    """

    call: int
    names: tuple[str, ...]
    way: layers.LayerRule | Replay
    layout: Layout


class Accounting:
    """Assigns the parameters of one graph to its calls, for one reading of what a sample is."""

    def __init__(
        self, graph: Graph, layouts: Sequence[dict[int, Layout | None]], samples: int
    ) -> None:
        """Prepares.

        Args:
            graph: The graph.
            layouts: For each of its calls where the samples lie in its results, None where they
                are mixed.
            samples: Their number N.
        """
        self._graph, self._samples = graph, samples
        self._layouts = dict(zip(graph.calls, layouts, strict=True))
        self._names = {c: {p: n for n, p in _parameters(c.call)} for c in graph.calls}
        self._replays: dict[RecordedCall, Replay | None] = {}

    def accounts(self) -> tuple[Account, ...]:
        """Who accounts for what.

        Raises:
            MixedSamplesError: The samples of the batch influence each other.
            UncoveredParameterError: A parameter is used where no call accounts for it.
        """
        uses: dict[Tensor, list[int]] = {}
        for use in self._graph.uses:
            uses.setdefault(use.parameter, []).append(use.sequence)
        grouped: dict[tuple[RecordedCall, layers.LayerRule | Replay], list[str]] = {}
        for parameter, sequences in uses.items():
            for recorded, way in self._account_for(parameter, sequences).items():
                name = self._names[recorded][parameter]
                grouped.setdefault((recorded, way), []).append(name)
        position = {recorded: index for index, recorded in enumerate(self._graph.calls)}
        return tuple(
            Account(position[recorded], tuple(names), way, self._layout(recorded))
            for (recorded, way), names in grouped.items()
        )

    def _layout(self, recorded: RecordedCall) -> Layout:
        return next(iter(self._layouts[recorded].values())) or Layout()

    def _account_for(
        self, parameter: Tensor, sequences: Sequence[int]
    ) -> dict[RecordedCall, layers.LayerRule | Replay]:
        """The calls whose rows, added up, are those of the parameter."""
        chosen: dict[RecordedCall, layers.LayerRule | Replay] = {}
        for sequence in sequences:
            owners = [c for c in self._graph.around(sequence) if parameter in self._names[c]]
            if not owners and not self._ours(parameter):
                continue
            for recorded in owners:
                ways = self._ways(recorded, parameter)
                if ways:
                    chosen.update(ways)
                    break
            else:
                raise self._refusal(parameter, owners)
        replays = [c for c, way in chosen.items() if isinstance(way, Replay)]
        return {
            recorded: way
            for recorded, way in chosen.items()
            if not any(_inside(recorded, outer) for outer in replays)
        }

    def _ours(self, parameter: Tensor) -> bool:
        return parameter in _watched or any(parameter in names for names in self._names.values())

    def _ways(
        self, recorded: RecordedCall, parameter: Tensor
    ) -> dict[RecordedCall, layers.LayerRule | Replay]:
        """How the call can account for the parameter; empty if it cannot."""
        if None in self._layouts[recorded].values():
            return {}
        module, name = recorded.call.module, self._names[recorded][parameter]
        if recorded.call.rule is not None:
            return self._by_rule(recorded.call.rule, [recorded], parameter)
        rule = layers.find(module)
        if rule is not None and name in rule.parameters:
            if why := rule.objection(module):
                raise UncoveredParameterError(f"parameter '{self._describe(parameter)}': {why}")
            siblings = [c for c in self._graph.calls if c.call.module is module and not c.call.rule]
            return self._by_rule(rule, siblings, parameter)
        if self._leaks(recorded, parameter):
            return {}
        if recorded not in self._replays:
            outputs = self._outputs(recorded)
            if not outputs:
                return {}
            kind = RecurrentReplay if isinstance(module, nn.RNNBase) else Replay
            self._replays[recorded] = replay(recorded.call, outputs, self._samples, kind)
        found = self._replays[recorded]
        return {} if found is None else {recorded: found}

    def _by_rule(
        self, rule: layers.LayerRule, siblings: Sequence[RecordedCall], parameter: Tensor
    ) -> dict[RecordedCall, layers.LayerRule | Replay]:
        """The rule for all calls of a layer: autocast casts a weight once and uses it in each."""
        for sibling in siblings:
            if not self._admitted(rule, sibling) or not sibling.call.unchanged():
                return {}
            for consumer in self._leaks(sibling, parameter):
                if not any(c in siblings for c in self._graph.around(consumer)):
                    return {}
        return dict.fromkeys(siblings, rule)

    def _admitted(self, rule: layers.LayerRule, recorded: RecordedCall) -> bool:
        module, axes = recorded.call.module, recorded.call.tensors()[0].dim()
        return all(
            layout is not None and rule.admits(module, layout, axes)
            for layout in self._layouts[recorded].values()
        )

    def _outputs(self, recorded: RecordedCall) -> dict[int, Layout] | None:
        """The results of a call that are used outside of it, with their layouts.

        The cotangent that arrives at a result holds what comes from outside and, where the call
        itself goes on from that result to another (the cell state of an LSTM cell), what comes
        from that one too. A result that is only used inside, or nowhere, is none. None if one is
        used both ways: then the cotangent from outside is not to be had.
        """
        outputs: dict[int, Layout] = {}
        for index, edge in recorded.edges.items():
            consumers = [
                recorded.call.encloses(c.consumer)
                for c in self._graph.connections
                if c.producer is edge.node and c.output == edge.output_nr
            ]
            made_inside = recorded.call.encloses(edge.node._sequence_nr())
            inside = made_inside and any(consumers)
            outside = not all(consumers) or self._graph.is_root(edge)
            if inside and outside:
                return None
            layout = self._layouts[recorded][index]
            if outside and layout is not None:
                outputs[index] = layout
        return outputs

    def _leaks(self, recorded: RecordedCall, parameter: Tensor) -> list[int]:
        """Where something made of the parameter leaves the call by another way than its results."""
        results = {edge.node for edge in recorded.edges.values()}
        inner = recorded.call.encloses
        return [
            connection.consumer
            for connection in self._graph.connections
            if connection.producer not in results
            and inner(connection.producer._sequence_nr())
            and not inner(connection.consumer)
            and self._depends(connection.producer, parameter, recorded)
        ]

    def _depends(
        self, node: torch.autograd.graph.Node, parameter: Tensor, within: RecordedCall
    ) -> bool:
        stack, seen = [node], {node}
        while stack:
            for child, _ in stack.pop().next_functions:
                if child is None or child in seen:
                    continue
                if getattr(child, "variable", None) is parameter:
                    return True
                seen.add(child)
                if within.call.encloses(child._sequence_nr()):
                    stack.append(child)
        return False

    def _refusal(self, parameter: Tensor, owners: Sequence[RecordedCall]) -> EngineError:
        name = self._describe(parameter)
        mixed = any(None in self._layouts[c].values() for c in owners)
        normed = [
            type(c.call.module).__name__
            for c in self._graph.calls
            if isinstance(c.call.module, nn.modules.batchnorm._BatchNorm) and c.call.module.training
        ]
        if mixed or normed:
            why = ""
            if normed:
                why = f" ({normed[0]} is in training mode: call eval() on it)"
            elif not any(self._graph.is_root(e) for c in self._layouts for e in c.edges.values()):
                why = (
                    " (or the loss reads only some of them: leave those out by ignore_index or "
                    "zero weights rather than by a selection)"
                )
            return MixedSamplesError(
                f"parameter '{name}': the samples of the batch influence each other, so nothing "
                f"per sample can be computed for it{why}"
            )
        return UncoveredParameterError(
            f"parameter '{name}' is used where no extended module that owns it was called, or "
            "where that module cannot be replayed sample by sample (it draws random numbers, as "
            "dropout in training mode, or changes its own state): no quantity was computed"
        )

    def _describe(self, parameter: Tensor) -> str:
        outermost = sorted(self._graph.calls, key=lambda c: (c.call.start, -c.call.end))
        for recorded in outermost:
            if parameter in self._names[recorded]:
                name = self._names[recorded][parameter]
                return f"{name}' of '{type(recorded.call.module).__name__}"
        return str(_watched.get(parameter, "?"))


def _parameters(call: Call) -> Iterator[tuple[str, Tensor]]:
    if isinstance(call.rule, OfLines):
        return ((name, call.module.get_parameter(name)) for name, _ in call.rule.lines)
    return call.module.named_parameters()


def _inside(inner: RecordedCall, outer: RecordedCall) -> bool:
    return (
        inner is not outer
        and outer.call.start <= inner.call.start
        and inner.call.end <= outer.call.end
        and inner.call.order < outer.call.order
    )
