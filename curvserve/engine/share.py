"""Leaves out the second backward pass for samples of which the first one brings it already.

A column of the Monte-Carlo factor is the gradient of the loss at a drawn target. Where that is the
sample's own target, the column is the sample's gradient but for its scale, and the rows that it
would bring are those of the ordinary pass. Only the other samples have to go back again; a net that
knows its labels has few. They go through the net once more, alone.

How many they are decides, and that depends on the values of the batch only: the same batch, seed
and parameters give the same bits each time.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge

from curvserve.engine import memory_format
from curvserve.engine.graph import read
from curvserve.engine.plan import plan
from curvserve.engine.quantities import DiagGGNMC, GradientQuantity, Quantity
from curvserve.engine.quantities.diagonal import square_sums
from curvserve.engine.rows import Rows
from curvserve.engine.samples import Layout
from curvserve.engine.second_order import Pass, Transport

__all__ = ["Again", "Hits", "Shared", "Split", "Steady", "again", "misses", "shared", "watched"]

_LEAST_SAMPLES = 16
_ROOMS = (16, 8, 4)
"""The other samples go back in groups of 1/16, 1/8 or 1/4 of the batch, filled up: so there are few
shapes. Beyond a quarter the pass of all is about as cheap."""

_WORTH = 4 * 10**8
"""Multiplications of a batch's pass forward below which it is cheaper to send all samples back."""

_ALIKE = 1e-3


@dataclass(frozen=True)
class Shared:
    """A column that is partly the gradient.

    Attributes:
        quantity: What it is for.
        column: The cotangent of the output.
        weights: ``[N]``: by what a sample's gradient becomes its column; zero where it does not.
        alone: Whether it is worth to have a few of them go through the net once more.
    """

    quantity: Quantity
    column: Tensor
    weights: Tensor
    alone: bool


@dataclass
class Split:
    """Chooses in advance, for a program that is written down, and keeps what the choice is by.

    Attributes:
        way: Whether ``all`` samples go back again or the ordinary pass is to be used for ``hits``.
        shared: What was shared, if anything.
    """

    way: Literal["all", "hits"]
    shared: Shared | None = None


@dataclass
class Steady:
    """Whether a forward pass would have the same result for some of its samples again.

    Attributes:
        holds: Whether it drew no random number and changed no buffer.
    """

    holds: bool = field(default=False)


@contextmanager
def watched(model: nn.Module) -> Iterator[Steady]:
    """A block with a forward pass, of which is told whether it can be had again."""
    found = Steady()
    numbers, versions = torch.get_rng_state(), [b._version for b in model.buffers()]
    yield found
    same = versions == [b._version for b in model.buffers()]
    found.holds = same and torch.equal(numbers, torch.get_rng_state())


def shared(at: Pass, quantity: Quantity, inputs: Any) -> Shared | None:
    """Draws the column of a quantity and finds where it is the gradient.

    Args:
        at: The pass.
        quantity: The quantity.
        inputs: The batch's inputs.

    Returns:
        None, and nothing drawn, where nothing can be shared.
    """
    outputs, samples = at.loss.outputs, at.plan.samples
    if not isinstance(quantity, DiagGGNMC) or quantity.mc_samples > 1:
        return None
    if outputs.device.type != "cpu":  # a GPU would have to be waited for
        return None
    if not len(inputs) == samples == len(outputs) >= _LEAST_SAMPLES:
        return None
    if at.plan.layout != Layout():
        return None
    found = at.loss.shared_column(at.draws)
    return found and Shared(quantity, *found, alone=_multiplications(at) >= _WORTH)


def _multiplications(at: Pass) -> int:
    """About how many the pass forward takes: each weight's numbers at each of its positions."""
    total = 0
    for account in at.plan.accounts:
        call = at.graph.calls[account.call].call
        seen = max((t.numel() for t in call.tensors()), default=0)
        for name in account.names:
            weight = call.module.get_parameter(name)
            if weight.dim() > 1:
                total += weight.numel() // max(1, weight.shape[1]) * seen
    return total


def misses(weights: Tensor, *, alone: bool) -> Tensor | None:
    """The samples that have to go back again, or None if all of them are to go.

    Args:
        weights: See :class:`Shared`.
        alone: Likewise.

    Returns:
        Indices, filled up with -1 to one of a few lengths.
    """
    where = (weights == 0).nonzero().flatten()
    if len(where) == 0:
        return where
    for share in _ROOMS if alone else ():
        room = -(-len(weights) // share)
        if len(where) <= room:
            return torch.cat([where, where.new_full((room - len(where),), -1)])
    return None


@dataclass(frozen=True)
class Again:
    """Some samples that have gone through the net once more.

    Attributes:
        outputs: The net's output for them.
        at: The way from there to the layers.
        column: The cotangent of their output.
    """

    outputs: Tensor
    at: Transport
    column: Tensor

    def square_sums(self) -> dict[Tensor, Tensor]:
        """What they contribute to the diagonal."""
        return square_sums(self.at, [self.column])


def again(model: nn.Module, inputs: Tensor, column: Tensor) -> Again:
    """Sends some samples through the net.

    Args:
        model: The net, the calls of which are recorded.
        inputs: Those of these samples.
        column: The cotangent of their output.
    """
    with torch.enable_grad():
        outputs = memory_format.run(model, inputs)
    node = outputs.grad_fn
    assert node is not None
    edge = GradientEdge(node, outputs.output_nr)
    graph, values = read(edge), outputs.detach()
    return Again(values, Transport(graph, plan(graph, edge, values), edge), column)


def picked(inputs: Tensor, column: Tensor, chosen: Tensor) -> tuple[Tensor, Tensor]:
    """The inputs and cotangents of the chosen samples; of those that fill up, a cotangent of 0."""
    own = column[chosen] * (chosen >= 0).to(column.dtype).unsqueeze(1)
    return inputs[chosen], own


def alike(own: Tensor, outputs: Tensor, chosen: Tensor) -> bool:
    """Whether outputs of the chosen samples are those of the batch, up to other kernels' rounding.

    They are not if something in the model mixes samples or counts its calls in ways of its own.
    """
    wanted = outputs[chosen]
    return torch.allclose(own, wanted, rtol=_ALIKE, atol=_ALIKE * float(wanted.abs().max()))


class Hits(GradientQuantity):
    """What the ordinary pass contributes to the diagonal."""

    def __init__(self, found: Shared) -> None:
        """Takes the weights.

        Args:
            found: What is shared.
        """
        self.savefield, self._weights = found.quantity.savefield, found.weights

    def reduce(self, rows: Rows) -> Tensor:
        """The weighted rows, squared and summed."""
        return rows.weighted(self._weights).square_sum()


def add(states: dict[Tensor, Tensor], more: Mapping[Tensor, Tensor]) -> None:
    """Adds what the samples that went back again contribute."""
    for parameter, part in more.items():
        states[parameter] = states[parameter] + part
