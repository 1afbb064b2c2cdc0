"""Reduces the cotangents of the ordinary backward pass while it runs.

Each layer's hook fires when autograd reaches the node behind the layer's output. Once all calls
that account for a parameter were reached, its quantities are computed and handed on, and the
cotangents are let go.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Any
from weakref import WeakMethod

import torch
from torch import Tensor
from torch.autograd.graph import Node
from torch.utils.hooks import RemovableHandle

from curvserve.engine.errors import SeveralLossesError
from curvserve.engine.graph import Graph, RecordedCall
from curvserve.engine.parts import parts
from curvserve.engine.plan import Account, Plan
from curvserve.engine.quantities import GradientQuantity
from curvserve.engine.recording import Call
from curvserve.engine.rows import Part, Rows

__all__ = ["FirstOrder"]


class FirstOrder:
    """What one backward pass has brought to the layers so far, and the hooks that catch more.

    Whoever makes it must hold it until backward has ended: the hooks refer to it weakly. Held by
    them it would be a cycle through the graph, which no garbage collector sees, and a pass that
    raises would never be let go.
    """

    def __init__(
        self,
        quantities: Iterable[GradientQuantity],
        done: Callable[[Tensor, dict[str, Any]], None],
        failed: Callable[[], None] = lambda: None,
        number: int | None = None,
    ) -> None:
        """Prepares; no hook is set yet.

        Args:
            quantities: What to compute of the cotangents.
            done: Called for each parameter with its states by savefield.
            failed: Called when a quantity raises, before the error goes on.
            number: Autograd's number of the pass to catch from, if it runs already.
        """
        self._quantities, self._done, self._failed = list(quantities), done, failed
        self._number = number
        self._samples: int | None = None
        self._accounts: dict[RecordedCall, list[Account]] = {}
        self._calls: dict[Call, RecordedCall] = {}
        self._waiting: dict[Tensor, set[RecordedCall]] = {}
        self._finished: set[Tensor] = set()
        self._parts: dict[Tensor, list[Part]] = {}
        self._missing: dict[RecordedCall, dict[int, Any]] = {}
        self._caught: dict[RecordedCall, dict[int, Tensor]] = {}
        self._places: list[list[tuple[RecordedCall, int, int]]] = []
        self._handles: list[RemovableHandle] = []

    def watch(self, graph: Graph, plan: Plan) -> None:
        """Sets hooks behind one loss; behind a second loss of the same pass only what is new.

        Args:
            graph: The graph behind the model's output.
            plan: Who accounts for which parameter.

        Raises:
            SeveralLossesError: A second loss of the same backward pass has other samples, or
                reaches a parameter by other calls than the first.
        """
        if self._samples not in (None, plan.samples):
            raise SeveralLossesError(
                f"the losses added up here have {self._samples} and {plan.samples} samples: "
                "nothing per sample is defined for their sum; call backward on each of them"
            )
        self._samples = plan.samples
        new: list[RecordedCall] = []
        for account in plan.accounts:
            recorded = graph.calls[account.call]
            known = self._calls.get(recorded.call)
            if known is None:
                self._calls[recorded.call] = recorded
                new.append(recorded)
            elif known is not recorded:
                if set(known.edges) != set(recorded.edges):
                    raise self._apart(recorded)
                continue
            self._accounts.setdefault(recorded, []).append(account)
            for name in account.names:
                parameter = recorded.call.module.get_parameter(name)
                if parameter in self._finished:
                    raise self._apart(recorded)
                self._waiting.setdefault(parameter, set()).add(recorded)
        self._hook(new)

    def unfinished(self) -> list[Tensor]:
        """The parameters that backward has not reached; removes all hooks."""
        for handle in self._handles:
            handle.remove()
        return list(self._waiting)

    def _apart(self, recorded: RecordedCall) -> SeveralLossesError:
        return SeveralLossesError(
            f"the losses added up here reach {type(recorded.call.module).__name__} by different "
            "forward passes or results: nothing per sample is defined for their sum; call "
            "backward on each of them, or give them one forward pass"
        )

    def _hook(self, new: Sequence[RecordedCall]) -> None:
        places: dict[Node, list[tuple[RecordedCall, int, int]]] = {}
        for recorded in new:
            self._missing[recorded] = dict(recorded.edges)
            self._caught[recorded] = {}
            for index, edge in recorded.edges.items():
                places.setdefault(edge.node, []).append((recorded, index, edge.output_nr))
        for node, expected in places.items():
            self._handles.append(node.register_prehook(self._catcher(len(self._places))))
            self._places.append(expected)

    def _catcher(self, place: int) -> Callable[[Sequence[Tensor | None]], None]:
        method = WeakMethod(self._reached)

        def reached(cotangents: Sequence[Tensor | None]) -> None:
            reach = method()
            if reach is not None:
                reach(place, cotangents)

        return reached

    def _reached(self, place: int, cotangents: Sequence[Tensor | None]) -> None:
        """Takes in the cotangents that have arrived at one of the nodes with a hook."""
        if self._number not in (None, torch._C._current_graph_task_id()):
            return  # a pass within this one: what another loss sends back through the same graph
        for recorded, index, number in self._places[place]:
            if self._missing[recorded].pop(index, None) is None:
                continue
            cotangent = cotangents[number]
            if cotangent is not None:
                self._caught[recorded][index] = cotangent.detach()
            if not self._missing[recorded]:
                try:
                    self._complete(recorded)
                except BaseException:
                    self._failed()
                    raise

    def _complete(self, recorded: RecordedCall) -> None:
        assert self._samples is not None
        caught = self._caught.pop(recorded)
        parameters: list[Tensor] = []
        for account in self._accounts[recorded]:
            for name in account.names:
                parameters.append(recorded.call.module.get_parameter(name))
            for parameter, part in parts(account, recorded, caught, self._samples).items():
                self._parts.setdefault(parameter, []).append(part)
        for parameter in parameters:
            self._waiting[parameter].discard(recorded)
            if not self._waiting[parameter]:
                self._finish(parameter, self._samples)

    def _finish(self, parameter: Tensor, samples: int) -> None:
        del self._waiting[parameter]
        self._finished.add(parameter)
        rows = Rows(self._parts.pop(parameter, []), samples, parameter)
        with torch.no_grad():
            states = {q.savefield: q.reduce(rows) for q in self._quantities}
        self._done(parameter, states)
