"""Products with the positive-curvature Hessian of a chain of modules.

(Chen, BDA-PCH: Block-diagonal approximation of positive-curvature Hessian for training neural
networks, 2018; Dangel, Harmeling, Hennig, AISTATS 2020.)
"""

from collections.abc import Sequence
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from curvserve.engine.chain import Link, links
from curvserve.engine.errors import ReplayError
from curvserve.engine.linearised import loss_ggn_product
from curvserve.engine.quantities.base import Quantity
from curvserve.engine.second_order import Pass

__all__ = ["PCHMP"]

Modify = Literal["clip", "abs"]


class _Curvature:
    """The matrix at each output of the chain, as a product."""

    def __init__(self, at: Pass, modify: Modify) -> None:
        self.links: list[Link] = links(at, "PCHMP")
        self._loss = loss_ggn_product(at.loss)
        self._added = [self._modified(link, modify) for link in self.links]
        self._parameters = [p for link in self.links for p in link.module.parameters()]
        self._versions = [p._version for p in self._parameters]

    def times(self, index: int, vectors: Tensor) -> Tensor:
        """The product with vectors ``[N, ...]`` at the output of a link."""
        if index == len(self.links) - 1:
            return self._loss(vectors)
        after, added = self.links[index + 1], self._added[index + 1]
        product = after.pull(self.times(index + 1, after.push(vectors)))
        return product if added is None else product + added * vectors

    def check(self) -> None:
        if self._versions != [p._version for p in self._parameters]:
            raise ReplayError(
                "the parameters have changed since the backward pass: products with the curvature "
                "there can no longer be had"
            )

    def _modified(self, link: Link, modify: Modify) -> Tensor | None:
        if not link.input.is_floating_point():
            return None
        residual = link.residual()
        if residual is None:
            return None
        return residual.clamp(min=0) if modify == "clip" else residual.abs()


class _Product:
    """One parameter's block, as a product."""

    def __init__(self, curvature: _Curvature, index: int, name: str, shape: torch.Size) -> None:
        self._curvature, self._index, self._name, self._shape = curvature, index, name, shape

    def __call__(self, vectors: Tensor) -> Tensor:
        """The product with a vector ``[*p]``, or with each of several ``[V, *p]``."""
        self._curvature.check()
        if vectors.shape == self._shape:
            return self._times(vectors.detach())
        if vectors.shape[1:] == self._shape:
            return torch.stack([self._times(v) for v in vectors.detach()])
        raise ValueError(
            f"a vector of the parameter's shape {tuple(self._shape)} or several, [V, *shape], are "
            f"needed, got {tuple(vectors.shape)}"
        )

    def _times(self, vector: Tensor) -> Tensor:
        link = self._curvature.links[self._index]
        pushed = link.push_parameter(self._name, vector)
        return link.pull_parameter(self._name, self._curvature.times(self._index, pushed))


class PCHMP(Quantity):
    """Multiplies by a parameter's block of the positive-curvature Hessian: in ``p.pchmp``.

    The Hessian of the loss with the second derivatives of each elementwise module clipped at zero
    or made absolute, so that with a convex loss it is positive semi-definite. ``p.pchmp(v)`` takes
    ``[*p.shape]`` or ``[V, *p.shape]``. For chains of modules only; it holds the inputs of all
    modules as long as it lives.
    """

    tensor: ClassVar[bool] = False
    of_one_loss: ClassVar[bool] = True

    def __init__(self, savefield: str = "pchmp", modify: Modify = "clip") -> None:
        """Chooses the attribute and what is done to negative second derivatives.

        Args:
            savefield: The attribute's name.
            modify: "clip" or "abs".

        Raises:
            ValueError: ``modify`` is neither.
        """
        if modify not in ("clip", "abs"):
            raise ValueError(f"modify must be 'clip' or 'abs', got {modify!r}")
        self.savefield, self.modify = savefield, modify

    def compute(self, at: Pass) -> dict[Tensor, Any]:
        """See the base class.

        Raises:
            NotAChainError: The model is no chain of modules, or one of them is neither linear nor
                elementwise in its input.
        """
        curvature = _Curvature(at, self.modify)
        states: dict[Tensor, Any] = dict.fromkeys(at.absent, torch.zeros_like)
        for index, link in enumerate(curvature.links):
            for name, parameter in link.module.named_parameters():
                if parameter.requires_grad:
                    states[parameter] = _Product(curvature, index, name, parameter.shape)
        return states

    def merge(self, states: Sequence[Any]) -> Any:
        """Products of parts of a batch are not put together."""
        raise ValueError(f"{type(self).__name__} needs the whole batch: call it without chunk")
