"""Products with blocks of the Gauss-Newton matrix and of the Hessian, as callables.

The graph is gone after backward, so they run the model again from its recorded inputs when they
are first called. (Pearlmutter 1994; Schraudolph 2002; Martens, ICML 2010.)
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, partial
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, get_gradient_edge

from curvserve.engine import context
from curvserve.engine.errors import ReplayError
from curvserve.engine.linearised import (
    Linearised,
    ggn_product,
    hessian_product,
    loss_ggn_product,
    rerun,
    root,
)
from curvserve.engine.losses.base import LossAt
from curvserve.engine.products import Product
from curvserve.engine.quantities.base import Quantity
from curvserve.engine.recording import Call
from curvserve.engine.second_order import Pass

__all__ = ["GGNMP", "HMP", "BlockProduct", "Unchanged"]

_Matrix = Callable[[Linearised], Product]


class Unchanged:
    """Parameters as they are now."""

    def __init__(self, module: nn.Module) -> None:
        """Notes their versions."""
        self._name = type(module).__name__
        self._versions = [(p, p._version) for p in module.parameters()]

    def check(self) -> None:
        """Raises ``ReplayError`` where one was changed since."""
        if any(p._version != version for p, version in self._versions):
            raise ReplayError(
                f"the parameters of {self._name} have changed since the backward pass: products "
                "with its curvature there can no longer be had"
            )


@dataclass(frozen=True, eq=False)
class BlockProduct:
    """A symmetric matrix over one parameter, given by its product with vectors.

    Attributes:
        shape: The shape of the parameter.
        at: The parameters at which it is taken.
        product: The product with one vector.
    """

    shape: torch.Size
    at: Unchanged
    product: Callable[[Tensor], Tensor]

    def __call__(self, vectors: Tensor) -> Tensor:
        """The product with a vector ``[*p]``, or with each of several ``[V, *p]``."""
        self.at.check()
        vectors = vectors.detach()
        if vectors.shape == self.shape:
            return self.product(vectors)
        if vectors.shape[1:] == self.shape:
            return torch.stack([self.product(v) for v in vectors])
        raise ValueError(
            f"a vector of the parameter's shape {tuple(self.shape)} or several, [V, *shape], are "
            f"needed, got {tuple(vectors.shape)}"
        )


class _Again:
    """The forward pass of a model, run again once and kept for all parameters."""

    def __init__(self, at: Pass) -> None:
        recorded, self._index = root(at)
        self._call: Call = recorded.call
        self._products: dict[Tensor, Product] = {}
        self.loss: LossAt = at.loss
        self.parameters = Unchanged(self._call.module)

    def times(self, matrix: _Matrix, parameter: Tensor, vector: Tensor) -> Tensor:
        if parameter not in self._products:
            model = Linearised(self._edge, self.loss.outputs, [parameter])
            self._products[parameter] = matrix(model)
        return self._products[parameter]([vector])[0]

    @cached_property
    def _edge(self) -> GradientEdge:
        with context.disable():
            result = rerun(self._call, self._index, self.loss.outputs)
        # not by result.grad_fn: of a function in Python that does not keep the graph alive
        return get_gradient_edge(result)


class GGNMP(Quantity):
    """Multiplies by a parameter's block of the Gauss-Newton matrix: a callable in ``p.ggnmp``.

    ``p.ggnmp(v)`` takes ``[*p.shape]`` or ``[V, *p.shape]`` and returns the same shape, in the
    scale of the loss. It is that at the parameters and the batch of the backward pass, and raises
    ``ReplayError`` once the parameters have changed.
    """

    tensor: ClassVar[bool] = False
    of_one_loss: ClassVar[bool] = True
    divisible: ClassVar[bool] = False

    def __init__(self, savefield: str = "ggnmp") -> None:
        """Chooses the attribute.

        Args:
            savefield: Its name.
        """
        self.savefield = savefield

    def compute(self, at: Pass) -> dict[Tensor, BlockProduct]:
        """See the base class."""
        again, matrix = _Again(at), self._matrix(at.loss)
        return {
            p: BlockProduct(p.shape, again.parameters, partial(again.times, matrix, p))
            for p in (*at.parameters(), *at.absent)
        }

    def _matrix(self, loss: LossAt) -> _Matrix:
        factor = loss_ggn_product(loss)  # now: a loss that has none is refused by the backward pass
        return lambda model: ggn_product(model, factor)


class HMP(GGNMP):
    """Multiplies by a parameter's block of the Hessian of the loss: a callable in ``p.hmp``.

    As :class:`GGNMP`.
    """

    def __init__(self, savefield: str = "hmp") -> None:
        """Chooses the attribute.

        Args:
            savefield: Its name.
        """
        super().__init__(savefield)

    def _matrix(self, loss: LossAt) -> _Matrix:
        return lambda model: hessian_product(model, loss)
