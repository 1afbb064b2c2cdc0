"""``extend``: makes a model and a loss ready for ``with backpack(...)``."""

import logging
import warnings
from collections.abc import Callable, Iterator, Sequence
from inspect import signature
from typing import Any, TypeVar
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
    UnsupportedLossError,
)
from curvserve.engine.first_order import FirstOrder
from curvserve.engine.graph import Graph, read
from curvserve.engine.losses import LossAt, LossRule
from curvserve.engine.plan import Plan, plan, watch
from curvserve.engine.quantities import GradientQuantity, Quantity
from curvserve.engine.recording import record_module
from curvserve.engine.second_order import Pass

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
    for inner in _losses(module):
        if losses.find(inner) is None:
            raise UnsupportedLossError(losses.refusal(inner))
        if _after_loss not in inner._forward_hooks.values():
            inner.register_forward_hook(_after_loss, with_kwargs=True)
    record_module(module)
    watch(module)
    if debug:
        log.info("extended %s", type(module).__name__)
    return module


def _losses(module: nn.Module) -> Iterator[nn.Module]:
    """The losses in a module; those that another loss is made of are a part of it."""
    if losses.is_loss(module):
        yield module
    else:
        for child in module.children():
            yield from _losses(child)


def _after_loss(
    module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], loss: Tensor
) -> None:
    """Lets the loss call back when backward reaches it.

    The hook must not hold the loss itself: that would be a cycle through the graph.
    """
    if not torch.is_grad_enabled() or not context.recording() or loss.grad_fn is None:
        return
    outputs, *rest = signature(module.forward).bind(*args, **kwargs).arguments.values()
    if outputs.grad_fn is None:
        return
    edge = GradientEdge(outputs.grad_fn, outputs.output_nr)
    moving = any(isinstance(r, Tensor) and r.requires_grad for r in rest)
    answers = [r.detach() if isinstance(r, Tensor) else r for r in rest]
    targets = answers[0] if len(answers) == 1 else tuple(answers)
    values, rule = outputs.detach(), losses.find(module)
    assert rule is not None

    def reached(gradient: Tensor) -> None:
        request = context.current()
        if request is not None:
            _Backward(request, module, rule, edge, values, targets, moving).run(gradient)

    loss.register_hook(reached)


class _Backward:
    """One extended loss that backward has reached, inside a ``backpack`` block."""

    def __init__(
        self,
        request: Request,
        module: nn.Module,
        rule: LossRule,
        edge: GradientEdge,
        outputs: Tensor,
        targets: Any,
        moving: bool,
    ) -> None:
        self._moving = moving
        self._request, self._module, self._rule = request, module, rule
        self._edge, self._outputs, self._targets = edge, outputs, targets

    def run(self, gradient: Tensor) -> None:
        """Computes second-order quantities now, and leaves hooks for the first-order ones."""
        task = _Task.current(self._request)
        if not self._request.quantities and self._request.extension_hook is None:
            return
        try:
            self._run(task, gradient)
        except BaseException:
            task.clear()
            raise

    def _run(self, task: "_Task", gradient: Tensor) -> None:
        losses.check(self._rule, self._module, self._outputs, self._targets)
        if self._moving:
            raise UnsupportedLossError(
                f"an argument of {type(self._module).__name__} beside the output requires a "
                "gradient, and its curvature is not in the rule: detach it, or use "
                "curvserve.engine.losses.Likelihood on one output that holds both"
            )
        graph = read(self._edge.node)
        found = plan(graph, self._edge, self._outputs)
        at = Pass(graph, found, self._edge, self._loss(gradient, found), GlobalDraws())
        first = []
        for quantity in self._request.quantities:
            states = quantity.compute(at)
            if states is None:
                assert isinstance(quantity, GradientQuantity)
                first.append(quantity)
            else:
                task.add(quantity, states)
        if self._request.debug:
            self._log(graph.calls, found)
        if self._request.extension_hook is not None:
            self._request.extension_hook(self._module)
        if first or self._request.extension_hook is not None:
            task.watch(graph, found, first)

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

    def _log(self, calls: list[Any], found: Plan) -> None:
        for account in found.accounts:
            log.info(
                "%s: %s of %s by %s",
                ", ".join(type(q).__name__ for q in self._request.quantities),
                ", ".join(account.names),
                type(calls[account.call].call.module).__name__,
                type(account.way).__name__,
            )


class _Task:
    """What one backward pass has computed so far, of all extended losses that it runs through.

    The pass itself holds it (by the callback at its end) and nothing else: a request that held it
    would keep the graph of a pass that raised.
    """

    def __init__(self, request: Request, number: int) -> None:
        self._request, self._number = request, number
        self._states: dict[Quantity, dict[Tensor, Any]] = {}
        self._filled: dict[Tensor, None] = {}
        self._first: FirstOrder | None = None
        self._owners = _Owners(request.extension_hook)
        self._by_field = {q.savefield: q for q in request.quantities}

    @classmethod
    def current(cls, request: Request) -> "_Task":
        """That of the backward pass that now runs."""
        number = torch._C._current_graph_task_id()
        task = request.served[-1]() if request.served else None
        if task is None or task._number != number:
            task = cls(request, number)
            request.served[:] = [ref(task)]
            torch.autograd.Variable._execution_engine.queue_callback(task._end)
        return task

    def add(self, quantity: Quantity, states: dict[Tensor, Any]) -> None:
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

    def watch(self, graph: Graph, found: Plan, quantities: Sequence[GradientQuantity]) -> None:
        """Sets the hooks for what is made of the gradient."""
        if self._first is None:
            # Weakly, or task and hooks would keep each other, and the graph, until they are
            # collected.
            done, failed = WeakMethod(self._done), WeakMethod(self.clear)
            self._first = FirstOrder(quantities, _weakly(done), _weakly(failed))
        self._owners.watch(graph, found)
        self._first.watch(graph, found)

    def clear(self) -> None:
        """Removes what was stored: a set that is not whole must not look computed."""
        for parameter in self._filled:
            for field in self._by_field:
                parameter.__dict__.pop(field, None)

    def _save(self, parameter: Tensor, quantity: Quantity, state: Any) -> None:
        setattr(parameter, quantity.savefield, quantity.finish(state))
        self._filled[parameter] = None

    def _done(self, parameter: Tensor, states: dict[str, Any]) -> None:
        for field, state in states.items():
            self._save(parameter, self._by_field[field], state)
        self._owners.finished(parameter)

    def _end(self) -> None:
        """Runs when backward has ended: whatever it did not reach must not look computed."""
        if self._first is None or not self._first.unfinished():
            return
        self.clear()
        raise IncompleteBackwardError(
            "backward ended before it reached every layer (was it called with inputs=...?), so "
            "the extensions could not be completed; nothing was stored"
        )


def _weakly(method: WeakMethod[Callable[..., None]]) -> Callable[..., None]:
    def call(*arguments: Any) -> None:
        bound = method()
        if bound is not None:
            bound(*arguments)

    return call


class _Owners:
    """Calls the extension hook for each module once all of its parameters are done."""

    def __init__(self, hook: Callable[[nn.Module], None] | None) -> None:
        self._hook = hook
        self._waiting: dict[nn.Module, set[Tensor]] = {}

    def watch(self, graph: Graph, found: Plan) -> None:
        """Notes the modules behind one loss, and which parameters each waits for."""
        accounted = {
            graph.calls[account.call].call.module.get_parameter(name)
            for account in found.accounts
            for name in account.names
        }
        modules = {m for c in graph.calls for m in c.call.module.modules()}
        for module in modules:
            own: set[Tensor] = {p for p in module.parameters(recurse=False) if p in accounted}
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
