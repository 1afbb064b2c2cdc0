"""Computes quantities while, and just before, autograd computes the gradient.

Second-order quantities come first: when backward reaches the loss, factors of the loss Hessian are
sent from the model's output to the outputs of the layers by re-entrant passes of autograd, which
carries them through every operation there is. First-order quantities use the cotangents of the
ordinary pass, caught as it reaches each layer.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from weakref import WeakMethod

import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, Node

from curvserve.engine.graph import Graph, RecordedCall
from curvserve.engine.layers import LayerRule
from curvserve.engine.layers.generic import Replay
from curvserve.engine.losses import Draws, LossAt
from curvserve.engine.plan import Account, Plan
from curvserve.engine.quantities import Quantity
from curvserve.engine.recording import Call
from curvserve.engine.rows import Part, Rows

__all__ = ["FirstOrder", "second_order"]

Results = dict[str, dict[Tensor, Tensor]]


@dataclass(frozen=True)
class _RulePart:
    """A part of the rows that the rule of a layer kind forms."""

    rule: LayerRule
    module: nn.Module
    name: str
    a: Tensor
    s: Tensor

    def rows(self, samples: Tensor | None) -> Tensor:
        a, s = (self.a, self.s) if samples is None else (self.a[samples], self.s[samples])
        return self.rule.rows(self.module, self.name, a, s)

    def square_sum(self) -> Tensor:
        return self.rule.square_sum(self.module, self.name, self.a, self.s)


@dataclass
class _Replayed:
    """The rows of all parameters that one replayed call accounts for, formed together."""

    way: Replay
    call: Call
    names: tuple[str, ...]
    cotangents: dict[int, Tensor]
    _rows: dict[str, Tensor] = field(default_factory=dict)

    def __getitem__(self, name: str) -> Tensor:
        if not self._rows:
            rows = self.way.rows(self.call, self.names, self.cotangents)
            self._rows = dict(zip(self.names, rows, strict=True))
        return self._rows[name]


@dataclass(frozen=True)
class _ReplayPart:
    """A part of the rows that replaying a call forms."""

    replayed: _Replayed
    name: str

    def rows(self, samples: Tensor | None) -> Tensor:
        rows = self.replayed[self.name]
        return rows if samples is None else rows[samples]

    def square_sum(self) -> Tensor:
        return self.replayed[self.name].square().sum(0)


def _parts(
    account: Account, recorded: RecordedCall, cotangents: dict[int, Tensor], samples: int
) -> dict[Tensor, Part]:
    """The parts that a call has in the rows of the parameters that it accounts for."""
    call = recorded.call
    parameters = {name: call.module.get_parameter(name) for name in account.names}
    if not cotangents:
        return {}
    if isinstance(account.way, Replay):
        replayed = _Replayed(account.way, call, account.names, cotangents)
        return {p: _ReplayPart(replayed, name) for name, p in parameters.items()}
    s = account.layout.samples_first(cotangents[0], samples)
    a = account.layout.samples_first(call.tensors()[0], samples)
    if a.is_floating_point():
        a = a.to(s.dtype)  # under autocast the layer computed in the cotangent's type
    return {p: _RulePart(account.way, call.module, name, a, s) for name, p in parameters.items()}


def second_order(
    graph: Graph,
    plan: Plan,
    output: GradientEdge,
    loss: LossAt,
    quantities: Sequence[Quantity],
    draws: Draws,
) -> Results:
    """Computes the quantities that are made of factors of the loss Hessian.

    Args:
        graph: The graph behind the output.
        plan: Who accounts for which parameter.
        output: The edge of the model's output.
        loss: The loss there.
        quantities: What to compute; those made of the gradient are passed over.
        draws: Where random numbers come from.

    Returns:
        For each savefield the result for each parameter in the graph.
    """
    recorded = [graph.calls[account.call] for account in plan.accounts]
    edges = [(r, i, edge) for r in dict.fromkeys(recorded) for i, edge in r.edges.items()]
    results: Results = {}
    for quantity in quantities:
        columns = quantity.columns(loss, draws)
        if columns is None:
            continue
        totals = results[quantity.savefield] = {}
        for column in columns:
            arrived = torch.autograd.grad(
                [output], [e for _, _, e in edges], [column], retain_graph=True, allow_unused=True
            )
            cotangents: dict[RecordedCall, dict[int, Tensor]] = {r: {} for r in recorded}
            for (r, index, _), cotangent in zip(edges, arrived, strict=True):
                if cotangent is not None:
                    cotangents[r][index] = cotangent.detach()
            for parameter, parts in _gather(plan, graph, cotangents).items():
                reduced = quantity.reduce(Rows(parts, plan.samples, parameter))
                totals[parameter] = quantity.combine(totals.get(parameter), reduced)
    return results


def _gather(
    plan: Plan, graph: Graph, cotangents: dict[RecordedCall, dict[int, Tensor]]
) -> dict[Tensor, list[Part]]:
    """The parts of each parameter, over all calls that account for it."""
    gathered: dict[Tensor, list[Part]] = {}
    for account in plan.accounts:
        recorded = graph.calls[account.call]
        for name in account.names:
            gathered.setdefault(recorded.call.module.get_parameter(name), [])
        parts = _parts(account, recorded, cotangents[recorded], plan.samples)
        for parameter, part in parts.items():
            gathered[parameter].append(part)
    return gathered


class FirstOrder:
    """Catches the cotangents of the ordinary backward pass and reduces them as they arrive.

    Each layer's hook fires when autograd reaches the node behind the layer's output. Once all
    calls that account for a parameter were reached, its quantities are computed and handed on,
    and the cotangents are let go.

    Whoever makes it must hold it until backward has ended: the hooks refer to it weakly. Held by
    them it would be a cycle through the graph, which no garbage collector sees, and a pass that
    raises would never be let go.
    """

    def __init__(
        self,
        graph: Graph,
        plan: Plan,
        quantities: Iterable[Quantity],
        done: Callable[[Tensor, dict[str, Tensor]], None],
    ) -> None:
        """Sets the hooks.

        Args:
            graph: The graph behind the output.
            plan: Who accounts for which parameter.
            quantities: What to compute of the cotangents.
            done: Called for each parameter with its results by savefield.
        """
        self._samples, self._quantities, self._done = plan.samples, list(quantities), done
        self._accounts: dict[RecordedCall, list[Account]] = {}
        self._waiting: dict[Tensor, set[RecordedCall]] = {}
        self._parts: dict[Tensor, list[Part]] = {}
        for account in plan.accounts:
            recorded = graph.calls[account.call]
            self._accounts.setdefault(recorded, []).append(account)
            for name in account.names:
                parameter = recorded.call.module.get_parameter(name)
                self._waiting.setdefault(parameter, set()).add(recorded)
        self._missing = {r: dict(r.edges) for r in self._accounts}
        self._caught: dict[RecordedCall, dict[int, Tensor]] = {r: {} for r in self._accounts}
        places: dict[Node, list[tuple[RecordedCall, int, int]]] = {}
        for recorded in self._accounts:
            for index, edge in recorded.edges.items():
                places.setdefault(edge.node, []).append((recorded, index, edge.output_nr))
        self._places = list(places.values())
        self._handles = [node.register_prehook(self._hook(i)) for i, node in enumerate(places)]

    def unfinished(self) -> list[Tensor]:
        """The parameters that backward has not reached; removes all hooks."""
        for handle in self._handles:
            handle.remove()
        return list(self._waiting)

    def _hook(self, node: int) -> Callable[[Sequence[Tensor | None]], None]:
        method = WeakMethod(self._reached)

        def reached(cotangents: Sequence[Tensor | None]) -> None:
            reach = method()
            if reach is not None:
                reach(node, cotangents)

        return reached

    def _reached(self, node: int, cotangents: Sequence[Tensor | None]) -> None:
        """Takes in the cotangents that have arrived at one of the nodes with a hook."""
        for recorded, index, number in self._places[node]:
            if self._missing[recorded].pop(index, None) is None:
                continue
            cotangent = cotangents[number]
            if cotangent is not None:
                self._caught[recorded][index] = cotangent.detach()
            if not self._missing[recorded]:
                self._complete(recorded)

    def _complete(self, recorded: RecordedCall) -> None:
        caught = self._caught.pop(recorded)
        parameters: list[Tensor] = []
        for account in self._accounts[recorded]:
            for name in account.names:
                parameters.append(recorded.call.module.get_parameter(name))
            for parameter, part in _parts(account, recorded, caught, self._samples).items():
                self._parts.setdefault(parameter, []).append(part)
        for parameter in parameters:
            self._waiting[parameter].discard(recorded)
            if not self._waiting[parameter]:
                self._finish(parameter)

    def _finish(self, parameter: Tensor) -> None:
        del self._waiting[parameter]
        rows = Rows(self._parts.pop(parameter, []), self._samples, parameter)
        with torch.no_grad():
            results = {q.savefield: q.reduce(rows) for q in self._quantities}
        self._done(parameter, results)
