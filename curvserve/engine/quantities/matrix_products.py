"""Products with blocks of the Gauss-Newton matrix and of the Hessian, as callables.

The graph is gone after backward, so they run the model again from its recorded inputs when they
are first called. (Pearlmutter 1994; Schraudolph 2002; Martens, ICML 2010.)
"""

from collections.abc import Callable
from functools import cached_property
from typing import ClassVar

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge

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

__all__ = ["GGNMP", "HMP"]


class _Again:
    """The forward pass of a model, run again once and kept for all parameters."""

    def __init__(self, at: Pass) -> None:
        recorded, self._index = root(at)
        self._call: Call = recorded.call
        self.loss: LossAt = at.loss
        self._parameters = list(self._call.module.parameters())
        self._versions = [p._version for p in self._parameters]

    def linearised(self, parameter: Tensor) -> Linearised:
        return Linearised(self._edge, self.loss.outputs, [parameter])

    @cached_property
    def _edge(self) -> GradientEdge:
        with context.disable():
            result = rerun(self._call, self._index, self.loss.outputs)
        assert result.grad_fn is not None
        return GradientEdge(result.grad_fn, result.output_nr)

    @cached_property
    def loss_ggn(self) -> Callable[[Tensor], Tensor]:
        return loss_ggn_product(self.loss)

    def check(self) -> None:
        if self._versions != [p._version for p in self._parameters]:
            raise ReplayError(
                f"the parameters of {type(self._call.module).__name__} have changed since the "
                "backward pass: products with its curvature there can no longer be had"
            )


class _Block:
    """A symmetric matrix over one parameter, given by its product with vectors."""

    def __init__(
        self, again: _Again, parameter: Tensor, matrix: Callable[[_Again, Tensor], Product]
    ) -> None:
        self._again, self._parameter, self._matrix = again, parameter, matrix

    def __call__(self, vectors: Tensor) -> Tensor:
        """The product with a vector ``[*p]``, or with each of several ``[V, *p]``."""
        self._again.check()
        shape = self._parameter.shape
        if vectors.shape == shape:
            return self._product([vectors.detach()])[0]
        if vectors.shape[1:] == shape:
            return torch.stack([self._product([v])[0] for v in vectors.detach()])
        raise ValueError(
            f"a vector of the parameter's shape {tuple(shape)} or several, [V, *shape], are "
            f"needed, got {tuple(vectors.shape)}"
        )

    @cached_property
    def _product(self) -> Product:
        return self._matrix(self._again, self._parameter)


def _ggn(again: _Again, parameter: Tensor) -> Product:
    return ggn_product(again.linearised(parameter), again.loss_ggn)


def _hessian(again: _Again, parameter: Tensor) -> Product:
    return hessian_product(again.linearised(parameter), again.loss)


class GGNMP(Quantity):
    """Multiplies by a parameter's block of the Gauss-Newton matrix: a callable in ``p.ggnmp``.

    ``p.ggnmp(v)`` takes ``[*p.shape]`` or ``[V, *p.shape]`` and returns the same shape, in the
    scale of the loss. It is that at the parameters and the batch of the backward pass, and raises
    ``ReplayError`` once the parameters have changed.
    """

    tensor: ClassVar[bool] = False
    of_one_loss: ClassVar[bool] = True
    _matrix = staticmethod(_ggn)

    def __init__(self, savefield: str = "ggnmp") -> None:
        """Chooses the attribute.

        Args:
            savefield: Its name.
        """
        self.savefield = savefield

    def compute(self, at: Pass) -> dict[Tensor, _Block]:
        """See the base class."""
        again = _Again(at)
        return {p: _Block(again, p, self._matrix) for p in (*at.parameters(), *at.absent)}

    def merge(self, states: object) -> object:
        """Products of parts of a batch are not put together."""
        raise ValueError(f"{type(self).__name__} needs the whole batch: call it without chunk")


class HMP(GGNMP):
    """Multiplies by a parameter's block of the Hessian of the loss: a callable in ``p.hmp``.

    As :class:`GGNMP`.
    """

    _matrix = staticmethod(_hessian)

    def __init__(self, savefield: str = "hmp") -> None:
        """Chooses the attribute.

        Args:
            savefield: Its name.
        """
        super().__init__(savefield)
