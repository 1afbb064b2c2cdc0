"""What one backward pass computes where it comes by extended losses and models."""

import logging
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from weakref import WeakMethod, ref

import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge

from curvserve.engine import context, losses
from curvserve.engine.context import Request
from curvserve.engine.draws import GlobalDraws
from curvserve.engine.errors import (
    IncompleteBackwardError,
    ScaledLossWarning,
    SeveralLossesError,
    UncoveredParameterError,
    UnsupportedLossError,
)
from curvserve.engine.extension_hook import ExtensionHook
from curvserve.engine.first_order import FirstOrder
from curvserve.engine.graph import Graph, read
from curvserve.engine.losses import LossAt, LossRule
from curvserve.engine.plan import Plan, plan
from curvserve.engine.quantities import GradientQuantity, Quantity
from curvserve.engine.second_order import Pass

__all__ = ["Backward", "ReachedLoss"]

log = logging.getLogger("curvserve.engine")


@dataclass(frozen=True)
class ReachedLoss:
    """An extended loss, as its forward pass left it.

    Attributes:
        module: The loss module.
        rule: Its rule.
        edge: That of its input in the graph.
        outputs: Its input, the model's output, detached.
        targets: Its other argument, or a tuple of them where there are more.
        moving: Whether one of these requires a gradient.
    """

    module: nn.Module
    rule: LossRule
    edge: GradientEdge
    outputs: Tensor
    targets: Any
    moving: bool

    def check(self) -> None:
        """Raises what the loss and the values of the output ask for."""
        losses.check(self.rule, self.module, self.outputs, self.targets)
        if self.moving:
            raise UnsupportedLossError(
                f"an argument of {type(self.module).__name__} beside the output requires a "
                "gradient, and its curvature is not in the rule: detach it, or use "
                "curvserve.engine.losses.Likelihood on one output that holds both"
            )

    def at(self, gradient: Tensor, found: Plan) -> LossAt:
        """The loss, multiplied by the gradient that backward brings to it."""
        scale = float(gradient) if gradient.numel() == 1 else 1.0
        if scale != 1.0:
            warnings.warn(
                f"backward reached {type(self.module).__name__} with the factor {scale:g}; all "
                "quantities are those of the loss times this factor",
                ScaledLossWarning,
                stacklevel=2,
            )
        if not scale > 0:
            raise UnsupportedLossError(
                f"the loss was multiplied by {scale:g} before backward: the curvature of a "
                "negative or vanishing multiple is not defined here"
            )
        return LossAt(
            self.rule, self.module, self.outputs, self.targets, scale, found.layout, found.samples
        )


class Backward:
    """What one backward pass has computed so far, of all losses and models that it comes by.

    The pass itself holds it (by the callback at its end) and nothing else: a request that held it
    would keep the graph of a pass that raised.
    """

    def __init__(self, request: Request, number: int) -> None:
        """Begins; see :meth:`current`.

        Args:
            request: What is asked for.
            number: Autograd's number of the pass.
        """
        self._request, self._number = request, number
        self._states: dict[Quantity, dict[Tensor, Any]] = {}
        self._begun: dict[Tensor, None] = {}
        self._seen: set[GradientEdge] = set()
        self._first: FirstOrder | None = None
        self._hook = ExtensionHook(request.extension_hook)
        self._by_field: dict[str, Quantity] = {q.savefield: q for q in request.quantities}

    @classmethod
    def current(cls, request: Request) -> "Backward":
        """That of the pass that now runs."""
        number = torch._C._current_graph_task_id()
        known = request.served[-1]() if request.served else None
        if known is None or known._number != number:
            known = cls(request, number)
            request.served[:] = [ref(known)]
            torch.autograd.Variable._execution_engine.queue_callback(known._end)
        return known

    def at_loss(self, reached: ReachedLoss, gradient: Tensor) -> None:
        """Computes what is made of the loss's curvature, and catches what follows."""
        if not self._request.quantities and self._request.extension_hook is None:
            return
        with self._all_or_nothing():
            with context.own_passes():
                graph = self._begin(reached.edge)
                reached.check()
                found = plan(graph, reached.edge, reached.outputs)
                loss = reached.at(gradient, found)
                at = Pass(graph, found, reached.edge, loss=loss, draws=GlobalDraws())
                for quantity in self._request.quantities if found.accounts else ():
                    states = quantity.compute(at)
                    if states is not None:
                        self._add(quantity, states)
            if self._request.extension_hook is not None:
                self._request.extension_hook(reached.module)
            self._watch(graph, found)

    def at_output(self, edge: GradientEdge, gradient: Tensor) -> None:
        """Catches what follows behind a model's result that no extended loss has claimed."""
        wanted = self._request.quantities or self._request.extension_hook is not None
        if not wanted or edge in self._seen:
            return
        with self._all_or_nothing():
            with context.own_passes():
                graph = self._begin(edge)
                names = [
                    type(q).__name__
                    for q in self._request.quantities
                    if not isinstance(q, GradientQuantity)
                ]
                if names:
                    raise UnsupportedLossError(
                        "backward reached the result of an extended model by another way than an "
                        f"extended loss, so that {', '.join(names)} cannot be computed: call "
                        "extend(loss_function), and take what is no loss outside of the block"
                    )
                found = plan(graph, edge, gradient)
            self._watch(graph, found)

    def _begin(self, edge: GradientEdge) -> Graph:
        """Reads the graph behind an edge, and takes old results off the parameters there."""
        graph = read(edge)
        self._seen.add(edge)
        self._seen.update(e for recorded in graph.calls for e in recorded.edges.values())
        for use in graph.uses:
            if use.parameter not in self._begun:
                self._begun[use.parameter] = None
                self._take_off(use.parameter)
        return graph

    @contextmanager
    def _all_or_nothing(self) -> Iterator[None]:
        try:
            yield
        except BaseException:
            self._clear()
            raise

    def _add(self, quantity: Quantity, states: dict[Tensor, Any]) -> None:
        """Adds what one loss contributes to a quantity, and saves the results."""
        known = self._states.setdefault(quantity, {})
        if known and quantity.of_one_loss:
            raise SeveralLossesError(
                f"{type(quantity).__name__} is not defined for a sum of several losses: call "
                "backward on each of them"
            )
        for parameter, state in states.items():
            total = quantity.combine(known[parameter], state) if parameter in known else state
            known[parameter] = total
            self._save(parameter, quantity, total)

    def _watch(self, graph: Graph, found: Plan) -> None:
        """Sets the hooks for what is made of the gradient."""
        if self._request.debug:
            self._log(graph, found)
        quantities = [q for q in self._request.quantities if isinstance(q, GradientQuantity)]
        if not quantities and self._request.extension_hook is None:
            return
        if quantities and any(recorded.call.differentiated for recorded in graph.calls):
            raise UncoveredParameterError(
                "a backward pass with create_graph=True ran through this forward pass before: if "
                "its result is a part of what is now differentiated, parameters are used outside "
                "of every call; run the forward pass again for what is made of its gradient"
            )
        if self._first is None:
            # Weakly, or this and the hooks would keep each other, and the graph, until they are
            # collected.
            done, failed = _weakly(self._done), _weakly(self._clear)
            self._first = FirstOrder(quantities, done, failed, self._number)
        self._hook.watch(graph, found)
        self._first.watch(graph, found)

    def _clear(self) -> None:
        """Removes what was stored: a set that is not whole must not look computed."""
        for parameter in self._begun:
            self._take_off(parameter)

    def _take_off(self, parameter: Tensor) -> None:
        for field in self._by_field:
            parameter.__dict__.pop(field, None)

    def _save(self, parameter: Tensor, quantity: Quantity, state: Any) -> None:
        setattr(parameter, quantity.savefield, quantity.finish(state))

    def _done(self, parameter: Tensor, states: dict[str, Any]) -> None:
        for field, state in states.items():
            self._save(parameter, self._by_field[field], state)
        self._hook.finished(parameter)

    def _end(self) -> None:
        """Runs when backward has ended: whatever it did not reach must not look computed."""
        if self._first is None or not self._first.unfinished():
            return
        self._clear()
        raise IncompleteBackwardError(
            "backward ended before it reached every layer (was it called with inputs=...?), so "
            "the extensions could not be completed; nothing was stored"
        )

    def _log(self, graph: Graph, found: Plan) -> None:
        for account in found.accounts:
            log.info(
                "%s: %s of %s by %s",
                ", ".join(type(q).__name__ for q in self._request.quantities),
                ", ".join(account.names),
                type(graph.calls[account.call].call.module).__name__,
                type(account.way).__name__,
            )


def _weakly(bound: Callable[..., None]) -> Callable[..., None]:
    method = WeakMethod(bound)

    def call(*arguments: Any) -> None:
        alive = method()
        if alive is not None:
            alive(*arguments)

    return call
