"""Calls a user's hook for each module once everything is computed for it."""

from collections.abc import Callable

from torch import Tensor, nn

from curvserve.engine.graph import Graph
from curvserve.engine.plan import Plan

__all__ = ["ExtensionHook"]


class ExtensionHook:
    """The hook, and the modules that still wait for some of their parameters."""

    def __init__(self, hook: Callable[[nn.Module], None] | None) -> None:
        """Takes the hook.

        Args:
            hook: Called with each module that owns parameters in a graph, in backward order.
        """
        self._hook = hook
        self._waiting: dict[nn.Module, set[Tensor]] = {}

    def watch(self, graph: Graph, found: Plan) -> None:
        """Notes the modules behind one loss, and which parameters each waits for."""
        if self._hook is None:
            return
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
