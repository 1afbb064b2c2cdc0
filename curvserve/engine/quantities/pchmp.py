"""Products with the positive-curvature Hessian of a chain of modules.

(Chen, BDA-PCH: Block-diagonal approximation of positive-curvature Hessian for training neural
networks, 2018; Dangel, Harmeling, Hennig, AISTATS 2020.)
"""

from functools import partial
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from curvserve.engine.chain import Link, links
from curvserve.engine.linearised import loss_ggn_product, root
from curvserve.engine.quantities.base import Quantity
from curvserve.engine.quantities.matrix_products import BlockProduct, Unchanged
from curvserve.engine.second_order import Pass

__all__ = ["PCHMP"]

Modify = Literal["clip", "abs"]


class _Curvature:
    """The matrix at each output of the chain, as a product."""

    def __init__(self, at: Pass, modify: Modify) -> None:
        self.links: list[Link] = links(at, "PCHMP")
        self._loss = loss_ggn_product(at.loss)
        self._added = [self._modified(link, modify) for link in self.links]

    def times(self, index: int, vectors: Tensor) -> Tensor:
        """The product with vectors ``[N, ...]`` at the output of a link."""
        if index == len(self.links) - 1:
            return self._loss(vectors)
        after, added = self.links[index + 1], self._added[index + 1]
        product = after.pull(self.times(index + 1, after.push(vectors)))
        return product if added is None else product + added * vectors

    def times_parameter(self, index: int, name: str, vector: Tensor) -> Tensor:
        """The product with a vector like a parameter of a link."""
        link = self.links[index]
        return link.pull_parameter(name, self.times(index, link.push_parameter(name, vector)))

    def _modified(self, link: Link, modify: Modify) -> Tensor | None:
        if not link.input.is_floating_point():
            return None
        residual = link.residual()
        if residual is None:
            return None
        return residual.clamp(min=0) if modify == "clip" else residual.abs()


class PCHMP(Quantity):
    """Multiplies by a parameter's block of the positive-curvature Hessian: in ``p.pchmp``.

    The Hessian of the loss with the second derivatives of each elementwise module clipped at zero
    or made absolute, so that with a convex loss it is positive semi-definite. ``p.pchmp(v)`` takes
    ``[*p.shape]`` or ``[V, *p.shape]``. For chains of modules only; it holds the inputs of all
    modules as long as it lives.
    """

    tensor: ClassVar[bool] = False
    of_one_loss: ClassVar[bool] = True
    divisible: ClassVar[bool] = False

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
        curvature, parameters = _Curvature(at, self.modify), Unchanged(root(at)[0].call.module)
        states: dict[Tensor, Any] = dict.fromkeys(at.absent, torch.zeros_like)
        for index, link in enumerate(curvature.links):
            for name, parameter in link.module.named_parameters():
                if parameter.requires_grad:
                    product = partial(curvature.times_parameter, index, name)
                    states[parameter] = BlockProduct(parameter.shape, parameters, product)
        return states
