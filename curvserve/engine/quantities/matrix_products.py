"""Products with blocks of the Gauss-Newton matrix and of the Hessian, as callables.

The graph is gone after backward, so they run the model again from its recorded inputs when they
are first called. (Pearlmutter 1994; Schraudolph 2002; Martens, ICML 2010.)
"""

from typing import ClassVar

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge

from curvserve.engine import context
from curvserve.engine.errors import EngineError, ReplayError
from curvserve.engine.linearised import (
    Linearised,
    loss_hessian_product,
    not_differentiable,
    rerun,
    root,
)
from curvserve.engine.losses.base import LossAt
from curvserve.engine.quantities.base import Quantity
from curvserve.engine.recording import Call
from curvserve.engine.second_order import Pass

__all__ = ["GGNMP", "HMP"]


class _Again:
    """The forward pass of a model, run again once and kept for all parameters.

    Attributes:
        loss: The loss behind it.
        columns: The exact factor of the loss Hessian, where the matrix is made of it.
    """

    def __init__(self, at: Pass, columns: Tensor | None) -> None:
        recorded, self._index = root(at)
        self._call: Call = recorded.call
        self.loss: LossAt = at.loss
        self.columns = columns
        self._parameters = list(self._call.module.parameters())
        self._versions = [p._version for p in self._parameters]
        self._edge: GradientEdge | None = None

    def linearised(self, parameter: Tensor) -> Linearised:
        self.check()
        if self._edge is None:
            with context.disable():
                result = rerun(self._call, self._index, self.loss.outputs)
            assert result.grad_fn is not None
            self._edge = GradientEdge(result.grad_fn, result.output_nr)
        return Linearised(self._edge, self.loss.outputs, [parameter])

    def check(self) -> None:
        if self._versions != [p._version for p in self._parameters]:
            raise ReplayError(
                f"the parameters of {type(self._call.module).__name__} have changed since the "
                "backward pass: products with its curvature there can no longer be had"
            )


class _Product:
    """A symmetric matrix over one parameter, given by its product with vectors."""

    def __init__(self, again: _Again, parameter: Tensor) -> None:
        self._again, self._parameter = again, parameter
        self._linearised: Linearised | None = None

    def __call__(self, vectors: Tensor) -> Tensor:
        """The product with a vector ``[*p]``, or with each of several ``[V, *p]``."""
        shape = self._parameter.shape
        if vectors.shape == shape:
            return self._times(vectors)
        if vectors.shape[1:] == shape:
            return torch.stack([self._times(v) for v in vectors])
        raise ValueError(
            f"a vector of the parameter's shape {tuple(shape)} or several, [V, *shape], are "
            f"needed, got {tuple(vectors.shape)}"
        )

    def _times(self, vector: Tensor) -> Tensor:
        self._again.check()
        if self._linearised is None:
            self._linearised = self._again.linearised(self._parameter)
        try:
            return self._product(self._linearised, vector.detach())
        except EngineError:
            raise
        except RuntimeError as error:
            raise not_differentiable(error) from error

    def _product(self, at: Linearised, vector: Tensor) -> Tensor:
        raise NotImplementedError


class _GGNProduct(_Product):
    def _product(self, at: Linearised, vector: Tensor) -> Tensor:
        loss, columns = self._again.loss, self._again.columns
        assert columns is not None
        return at.pull(loss_hessian_product(loss, columns, at.push([vector])))[0]


class _HessianProduct(_Product):
    def _product(self, at: Linearised, vector: Tensor) -> Tensor:
        loss = self._again.loss
        curvature = at.pull(loss.hessian_product(at.push([vector])))[0]
        return curvature + at.curve(loss.gradient(), [vector])[0]


class GGNMP(Quantity):
    """Multiplies by a parameter's block of the Gauss-Newton matrix: a callable in ``p.ggnmp``.

    ``p.ggnmp(v)`` takes ``[*p.shape]`` or ``[V, *p.shape]`` and returns the same shape, in the
    scale of the loss. It is that at the parameters and the batch of the backward pass, and raises
    ``ReplayError`` once the parameters have changed.
    """

    tensor: ClassVar[bool] = False
    of_one_loss: ClassVar[bool] = True
    _kind: ClassVar[type[_Product]] = _GGNProduct

    def __init__(self, savefield: str = "ggnmp") -> None:
        """Chooses the attribute.

        Args:
            savefield: Its name.
        """
        self.savefield = savefield

    def compute(self, at: Pass) -> dict[Tensor, _Product]:
        """See the base class."""
        again = _Again(at, self._columns(at))
        return {p: self._kind(again, p) for p in (*at.parameters(), *at.absent)}

    def _columns(self, at: Pass) -> Tensor | None:
        """Made now, so that a loss without an exact factor is refused by the backward pass."""
        return at.loss.exact_columns()

    def merge(self, states: object) -> object:
        """Products of parts of a batch are not put together."""
        raise ValueError(f"{type(self).__name__} needs the whole batch: call it without chunk")


class HMP(GGNMP):
    """Multiplies by a parameter's block of the Hessian of the loss: a callable in ``p.hmp``.

    As :class:`GGNMP`.
    """

    _kind: ClassVar[type[_Product]] = _HessianProduct

    def __init__(self, savefield: str = "hmp") -> None:
        """Chooses the attribute.

        Args:
            savefield: Its name.
        """
        super().__init__(savefield)

    def _columns(self, at: Pass) -> None:
        return
