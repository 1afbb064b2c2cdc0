"""One backward pass through a loss, as the second-order quantities see it.

When backward reaches the loss, factors of the loss Hessian are sent from the model's output to
the outputs of the layers by re-entrant passes of autograd, which carries them through every
operation there is.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge

from curvserve.engine.graph import Graph, RecordedCall
from curvserve.engine.losses import Draws, LossAt
from curvserve.engine.parts import gather
from curvserve.engine.plan import Plan
from curvserve.engine.rows import Rows

__all__ = ["Pass"]


@dataclass(frozen=True)
class Pass:
    """A loss, the graph behind the model's output, and who accounts for which parameter.

    Attributes:
        graph: The graph behind the output.
        plan: Who accounts for which parameter.
        output: The edge of the model's output.
        loss: The loss there.
        draws: Where random numbers come from.
        absent: Parameters that the loss does not depend on, of which results are wanted too.
    """

    graph: Graph
    plan: Plan
    output: GradientEdge
    loss: LossAt
    draws: Draws
    absent: Sequence[Tensor] = ()

    def rows(self, columns: Iterable[Tensor]) -> Iterator[dict[Tensor, Rows]]:
        """Sends cotangents back to the layers, one after the other.

        Args:
            columns: Cotangents of the model's output, each of its shape.

        Yields:
            For each column the rows of every parameter.
        """
        recorded = [self.graph.calls[account.call] for account in self.plan.accounts]
        edges = [(r, i, edge) for r in dict.fromkeys(recorded) for i, edge in r.edges.items()]
        samples = self.plan.samples
        for column in columns:
            arrived = torch.autograd.grad(
                [self.output],
                [e for _, _, e in edges],
                [column],
                retain_graph=True,
                allow_unused=True,
            )
            cotangents: dict[RecordedCall, dict[int, Tensor]] = {r: {} for r in recorded}
            for (r, index, _), cotangent in zip(edges, arrived, strict=True):
                if cotangent is not None:
                    cotangents[r][index] = cotangent.detach()
            gathered = gather(self.plan, self.graph, cotangents)
            rows = {p: Rows(own, samples, p) for p, own in gathered.items()}
            yield rows | {p: Rows((), samples, p) for p in self.absent}

    def parameters(self) -> list[Tensor]:
        """The parameters in the graph, each once."""
        accounted = (
            self.graph.calls[account.call].call.module.get_parameter(name)
            for account in self.plan.accounts
            for name in account.names
        )
        # As the outermost module has them: kernels differ in the order in which they take them in,
        # and random signs are drawn one parameter after the other.
        outermost = min(self.graph.calls, key=lambda c: (c.call.start, -c.call.end)).call.module
        rank: dict[Tensor, int] = {p: i for i, p in enumerate(outermost.parameters())}
        return sorted(dict.fromkeys(accounted), key=lambda p: rank.get(p, len(rank)))

    def describe(self, parameter: Tensor) -> str:
        """The name of a parameter for a message, with the kind of module that it belongs to."""
        for account in self.plan.accounts:
            module = self.graph.calls[account.call].call.module
            for name in account.names:
                if module.get_parameter(name) is parameter:
                    return f"'{name}' of {type(module).__name__}"
        return "of no recorded module"
