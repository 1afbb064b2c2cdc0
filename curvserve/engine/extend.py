"""``extend``: makes a model and a loss ready for ``with backpack(...)``."""

import logging
import warnings
from collections.abc import Callable
from functools import partial
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge

from curvserve.engine import context, losses
from curvserve.engine.backward import FirstOrder, second_order
from curvserve.engine.context import Request
from curvserve.engine.draws import GlobalDraws
from curvserve.engine.errors import (
    IncompleteBackwardError,
    ScaledLossWarning,
    UnsupportedLossError,
)
from curvserve.engine.graph import read
from curvserve.engine.losses import LossAt, LossRule
from curvserve.engine.plan import Plan, plan, watch
from curvserve.engine.recording import record_module

__all__ = ["extend"]

log = logging.getLogger("curvserve.engine")

ModuleT = TypeVar("ModuleT", bound=nn.Module)


def extend(module: ModuleT, debug: bool = False, use_converter: bool = False) -> ModuleT:
    """Makes a model, or a loss module, ready for ``with backpack(...)``.

    Forward passes are recorded from then on wherever gradients are enabled; nothing else about
    the module changes. Extending twice does nothing more.

    Args:
        module: The model or the loss; both must be extended.
        debug: Log what is extended (logger ``curvserve.engine``).
        use_converter: Accepted for BackPACK's sake; any architecture is taken as it is.

    Returns:
        The same module.

    Raises:
        TypeError: ``module`` is not a module.
        UnsupportedLossError: It is a loss of torch whose curvature is not known.
    """
    if not isinstance(module, nn.Module):
        raise TypeError(f"extend takes a torch.nn.Module, got {type(module).__name__}")
    for inner in module.modules():
        if losses.find(inner) is None and isinstance(inner, nn.modules.loss._Loss):
            known = ", ".join(sorted(kind.__name__ for kind in losses.RULES))
            raise UnsupportedLossError(
                f"{type(inner).__name__} has no curvature rule; losses that have: {known}"
            )
        if losses.find(inner) is not None and _after_loss not in inner._forward_hooks.values():
            inner.register_forward_hook(_after_loss)
    record_module(module)
    watch(module)
    if debug:
        log.info("extended %s", type(module).__name__)
    return module


def _after_loss(module: nn.Module, args: tuple[Any, ...], loss: Tensor) -> None:
    """Lets the loss call back when backward reaches it.

    The hook must not hold the loss itself: that would be a cycle through the graph.
    """
    if not torch.is_grad_enabled() or not context.recording() or loss.grad_fn is None:
        return
    outputs, targets = args[0], args[1]
    if outputs.grad_fn is None:
        return
    edge = GradientEdge(outputs.grad_fn, outputs.output_nr)
    values, answers = outputs.detach(), targets.detach()
    rule = losses.find(module)
    assert rule is not None

    def reached(gradient: Tensor) -> None:
        request = context.current()
        if request is not None:
            _Backward(request, module, rule, edge, values, answers).run(gradient)

    loss.register_hook(reached)


class _Backward:
    """One backward pass through one extended loss, inside a ``backpack`` block."""

    def __init__(
        self,
        request: Request,
        module: nn.Module,
        rule: LossRule,
        edge: GradientEdge,
        outputs: Tensor,
        targets: Tensor,
    ) -> None:
        self._request, self._module, self._rule = request, module, rule
        self._edge, self._outputs, self._targets = edge, outputs, targets
        self._filled: list[Tensor] = []

    def run(self, gradient: Tensor) -> None:
        """Computes second-order quantities now, and leaves hooks for the first-order ones."""
        self._request.served.append(None)
        if not self._request.quantities and self._request.extension_hook is None:
            return
        losses.check(self._rule, self._module, self._outputs, self._targets)
        graph = read(self._edge.node)
        found = plan(graph, self._edge, self._outputs)
        loss = self._loss(gradient, found)
        quantities = self._request.quantities
        results = second_order(graph, found, self._edge, loss, quantities, GlobalDraws())
        for field, values in results.items():
            for parameter, value in values.items():
                self._save(parameter, field, value)
        if self._request.debug:
            self._log(graph.calls, found)
        if self._request.extension_hook is not None:
            self._request.extension_hook(self._module)
        first = [q for q in quantities if q.savefield not in results]
        if first or self._request.extension_hook is not None:
            self._owners = _Owners(graph, found, self._request.extension_hook)
            caught = FirstOrder(graph, found, first, self._done)
            # The pass itself holds it: as an attribute it would be a cycle that keeps the graph.
            end = partial(self._end, caught)
            torch.autograd.Variable._execution_engine.queue_callback(end)

    def _loss(self, gradient: Tensor, found: Plan) -> LossAt:
        scale = float(gradient) if gradient.numel() == 1 else 1.0
        if scale != 1.0:
            warnings.warn(
                f"backward reached {type(self._module).__name__} with the factor {scale:g}; all "
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
            self._rule,
            self._module,
            self._outputs,
            self._targets,
            scale,
            found.layout,
            found.samples,
        )

    def _save(self, parameter: Tensor, field: str, value: Tensor) -> None:
        setattr(parameter, field, value)
        self._filled.append(parameter)

    def _done(self, parameter: Tensor, results: dict[str, Tensor]) -> None:
        for field, value in results.items():
            self._save(parameter, field, value)
        self._owners.finished(parameter)

    def _end(self, caught: FirstOrder) -> None:
        """Runs when backward has ended: whatever it did not reach must not look computed."""
        if not caught.unfinished():
            return
        for parameter in self._filled:
            for quantity in self._request.quantities:
                parameter.__dict__.pop(quantity.savefield, None)
        raise IncompleteBackwardError(
            "backward ended before it reached every layer (was it called with inputs=...?), so "
            "the extensions could not be completed; nothing was stored"
        )

    def _log(self, calls: list[Any], found: Plan) -> None:
        for account in found.accounts:
            log.info(
                "%s: %s of %s by %s",
                ", ".join(type(q).__name__ for q in self._request.quantities),
                ", ".join(account.names),
                type(calls[account.call].call.module).__name__,
                type(account.way).__name__,
            )


class _Owners:
    """Calls the extension hook for each module once all of its parameters are done."""

    def __init__(self, graph: Any, found: Plan, hook: Callable[[nn.Module], None] | None) -> None:
        self._hook = hook
        self._waiting: dict[nn.Module, set[Tensor]] = {}
        accounted = {
            graph.calls[account.call].call.module.get_parameter(name)
            for account in found.accounts
            for name in account.names
        }
        modules = {m for c in graph.calls for m in c.call.module.modules()}
        for module in modules:
            own = {p for p in module.parameters(recurse=False) if p in accounted}
            if own:
                self._waiting[module] = own

    def finished(self, parameter: Tensor) -> None:
        """Notes that all quantities of a parameter are there."""
        for module in [m for m, own in self._waiting.items() if parameter in own]:
            self._waiting[module].discard(parameter)
            if not self._waiting[module]:
                del self._waiting[module]
                if self._hook is not None:
                    self._hook(module)
