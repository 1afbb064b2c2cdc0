"""One backward pass through a loss, as the second-order quantities see it.

When backward reaches the loss, factors of the loss Hessian are sent from the model's output to
the outputs of the layers by re-entrant passes of autograd, which carries them through every
operation there is.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge

from curvserve.engine.convolutions import sent_back
from curvserve.engine.graph import Graph, RecordedCall
from curvserve.engine.losses import Draws, LossAt
from curvserve.engine.parts import gather
from curvserve.engine.plan import Plan
from curvserve.engine.rows import Rows

__all__ = ["Pass", "Transport"]

_CONVOLUTION = "ConvolutionBackward0"

_TOGETHER_BYTES = {"cpu": 8 << 20, "cuda": 64 << 20}
"""What the cotangents of columns that go back together may take, at all layers.

On a CPU they are meant to stay in its cache; a GPU waits for less if it is given more at once.
"""


@dataclass(frozen=True)
class Transport:
    """The way from a model's output to its layers.

    Attributes:
        graph: The graph behind the output.
        plan: Who accounts for which parameter.
        output: The edge of the model's output.
        absent: Parameters that the loss does not depend on, of which results are wanted too.
    """

    graph: Graph
    plan: Plan
    output: GradientEdge
    absent: Sequence[Tensor] = ()

    def rows(self, columns: Iterable[Tensor]) -> Iterator[dict[Tensor, Rows]]:
        """Sends cotangents back to the layers, one after the other.

        Args:
            columns: Cotangents of the model's output, each of its shape.

        Yields:
            For each column the rows of every parameter.
        """
        for column in columns:
            yield self._rows(self._arrived(column))

    def row_groups(self, columns: Iterable[Tensor]) -> Iterator[list[dict[Tensor, Rows]]]:
        """Sends cotangents back to the layers, as many at a time as memory allows.

        Args:
            columns: Cotangents of the model's output, each of its shape.

        Yields:
            For each of a few columns the rows of every parameter.
        """
        # a layer's cotangents take about as much as its inputs
        given = (t for r in self._recorded() for t in r.call.args if isinstance(t, Tensor))
        size = sum(t.numel() * t.element_size() for t in given)
        waiting = columns if isinstance(columns, Tensor) else list(columns)
        most = _TOGETHER_BYTES.get(waiting[0].device.type, 8 << 20) if len(waiting) else 0
        count = max(1, most // max(1, size))
        for start in range(0, len(waiting), count):
            group = waiting[start : start + count]
            together = group if isinstance(group, Tensor) else torch.stack(group)
            yield [self._rows(each) for each in self._arrived_together(together)]

    def _arrived(self, column: Tensor, *, batched: bool = False) -> tuple[Tensor | None, ...]:
        with sent_back(column, convolved=_CONVOLUTION in self.graph.operations):
            return torch.autograd.grad(
                [self.output],
                [edge for _, _, edge in self._edges()],
                [column],
                retain_graph=True,
                allow_unused=True,
                is_grads_batched=batched,
            )

    def _arrived_together(self, columns: Tensor) -> Iterator[tuple[Tensor | None, ...]]:
        """What arrives for each of several columns: in one pass, if every operation allows it."""
        if len(columns) > 1:
            try:
                arrived = self._arrived(columns, batched=True)
            except RuntimeError:  # an operation that can be sent one cotangent only
                pass
            else:
                for v in range(len(columns)):
                    yield tuple(None if t is None else t[v] for t in arrived)
                return
        for column in columns:
            yield self._arrived(column)

    def _recorded(self) -> list[RecordedCall]:
        """The calls that account for a parameter, each once."""
        return list(dict.fromkeys(self.graph.calls[a.call] for a in self.plan.accounts))

    def _edges(self) -> list[tuple[RecordedCall, int, GradientEdge]]:
        return [(r, i, edge) for r in self._recorded() for i, edge in r.edges.items()]

    def _rows(self, arrived: Sequence[Tensor | None]) -> dict[Tensor, Rows]:
        cotangents: dict[RecordedCall, dict[int, Tensor]] = {}
        for (r, index, _), cotangent in zip(self._edges(), arrived, strict=True):
            own = cotangents.setdefault(r, {})
            if cotangent is not None:
                own[index] = cotangent.detach()
        samples = self.plan.samples
        gathered = gather(self.plan, self.graph, cotangents)
        rows = {p: Rows(own, samples, p) for p, own in gathered.items()}
        return rows | {p: Rows((), samples, p) for p in self.absent}


@dataclass(frozen=True)
class Pass(Transport):
    """One backward pass through a loss, as second-order quantities see it.

    Attributes:
        loss: The loss at the output.
        draws: Where random numbers come from.
    """

    loss: LossAt = field(kw_only=True)
    draws: Draws = field(kw_only=True)

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
