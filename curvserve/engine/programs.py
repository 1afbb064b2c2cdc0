"""Evaluations written down as flat operations, and how they are run."""

from collections.abc import Callable, Hashable, Mapping
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.fx import GraphModule, Node
from torch.fx.experimental.proxy_tensor import make_fx

from curvserve.engine import context, share
from curvserve.engine.branches import cut
from curvserve.engine.recording import attached
from curvserve.engine.rewriting import pooled_first, shortened
from curvserve.engine.traced import is_mask

__all__ = [
    "ALL",
    "Operations",
    "Rest",
    "Sharing",
    "Straight",
    "Way",
    "layout",
    "written_down",
]

_MOST_OPERATIONS = 20_000

_SAME = (torch.ops.aten.alias.default, torch.ops.aten.detach.default)
"""What returns its argument; torch 2.11 writes down each `detach`, later versions do not."""

Way = int
"""By which operations a program goes: the number of samples that go back alone, or `ALL`."""

ALL = -1
"""All samples go back together."""

Rest = Callable[[], list[Tensor] | None]


def layout(tensor: Tensor) -> tuple[Hashable, ...]:
    """What a program depends on of a tensor beside its values."""
    return tensor.shape, tensor.stride(), tensor.dtype, tensor.device


class Operations(Protocol):
    """A program."""

    def begin(self, *arguments: Tensor) -> tuple[Way, Rest]:
        """Runs until it is known by which way it goes.

        Returns:
            The way, and what runs on and returns the results, or None where that way is found to
            be none.
        """


class Straight:
    """A program that always does the same."""

    def __init__(self, program: GraphModule) -> None:
        """Takes the program, shortened."""
        self._program = program

    def begin(self, *arguments: Tensor) -> tuple[Way, Rest]:
        """See :class:`Operations`."""
        return ALL, lambda: self._program(*arguments)


class Sharing:
    """A program that leaves out the second backward pass where it can, see :mod:`.share`."""

    def __init__(
        self,
        model: nn.Module,
        whole: GraphModule,
        hits: GraphModule,
        places: Mapping[str, int],
        *,
        alone: bool,
    ) -> None:
        """Takes the programs for both ways.

        Args:
            model: The net.
            whole: All samples go back again.
            hits: None does. Both return the outputs, the column and the weights last.
            places: For the names of parameters, where the shared results stand among the others.
            alone: Whether few samples may go through the net alone.
        """
        self._model, self._places, self._alone = model, places, alone
        self._cut = cut([whole, hits], 3)
        self._again: dict[int, Callable[..., list[Tensor]]] = {}

    def begin(self, *arguments: Tensor) -> tuple[Way, Rest]:
        """See :class:`Operations`."""
        (outputs, column, weights), values = self._cut.begin(*arguments)
        chosen = share.misses(weights, alone=self._alone)
        if chosen is None:
            return ALL, lambda: self._cut.go_on(0, values)

        def rest() -> list[Tensor] | None:
            more: list[Tensor] = []
            if len(chosen):
                own, *more = self._run_again(*share.picked(arguments[0], column, chosen))
                if not share.alike(own, outputs, chosen):
                    return None
            leaves = self._cut.go_on(1, values)
            for place, part in zip(self._places.values(), more, strict=bool(more)):
                leaves[place] = leaves[place] + part
            return leaves

        return len(chosen), rest

    def _run_again(self, inputs: Tensor, column: Tensor) -> list[Tensor]:
        size = len(inputs)
        if size not in self._again:
            once_more = self._once_more()
            once_more(inputs, column)  # what is found out at a first call is not written down
            self._again[size] = shortened(written_down(once_more, inputs, column))
        return self._again[size](inputs, column)

    def _once_more(self) -> Callable[..., list[Tensor]]:
        """What samples contribute that go through the net once more, after its output for them."""

        def flat(x: Tensor, own: Tensor) -> list[Tensor]:
            with context.own_passes(), attached(self._model):
                again = share.again(self._model, x, own)
                with torch.no_grad():
                    sums = again.square_sums()
            parameters = [self._model.get_parameter(name) for name in self._places]
            return [again.outputs, *(sums.get(p, p.new_zeros(())) for p in parameters)]

        return flat


def written_down(function: Callable[..., list[Tensor]], *arguments: Tensor) -> GraphModule:
    """Runs a function of tensors, and returns the operations that it sets off as a program.

    Raises:
        ValueError: They are too many, or their results' shapes depend on values.
    """
    with context.tracing():
        made = make_fx(function)(*arguments)
    if (count := len(made.graph.nodes)) > _MOST_OPERATIONS:
        raise ValueError(f"{count} operations are more than {_MOST_OPERATIONS}")
    for node in made.graph.nodes:
        if _is_shaped_by_values(node):
            raise ValueError(f"the values decide what shape {node.target} returns")
        if node.target in _SAME:
            node.replace_all_uses_with(node.args[0])
            made.graph.erase_node(node)
    pooled_first(made)
    return made


def _is_shaped_by_values(node: Node) -> bool:
    if node.target is torch.ops.aten.index.Tensor:  # by a mask, not by numbers
        indices: Any = node.args[1]
        return any(map(is_mask, indices))
    return torch.Tag.dynamic_output_shape in getattr(node.target, "tags", ())
