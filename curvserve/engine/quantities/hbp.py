"""Hessian backpropagation: Kronecker factors with a curvature averaged over the batch.

(Botev, Ritter, Barber, Practical Gauss-Newton optimisation for deep learning, ICML 2017; Dangel,
Harmeling, Hennig, Modular block-diagonal curvature approximations for feedforward architectures,
AISTATS 2020; Chen, BDA-PCH, 2018.)
"""

from typing import Any, ClassVar

import torch
from torch import Tensor

from curvserve.engine.chain import Link, links
from curvserve.engine.errors import UncoveredParameterError
from curvserve.engine.hbp_options import (
    BackpropStrategy,
    Curvature,
    ExpectationApproximation,
    LossHessianStrategy,
)
from curvserve.engine.layers import LayerRule
from curvserve.engine.quantities.base import Quantity
from curvserve.engine.quantities.kronecker import KFAC, KFLR
from curvserve.engine.samples import Layout
from curvserve.engine.second_order import Pass

__all__ = ["KFRA", "HBP"]


class _Averaged(Quantity):
    """Kronecker factors of a curvature averaged over the batch, carried back along a chain."""

    tensor: ClassVar[bool] = False
    of_one_loss: ClassVar[bool] = True
    divisible: ClassVar[bool] = False  # an average over a part is not that over the batch

    def compute(self, at: Pass) -> dict[Tensor, list[Tensor]]:
        """See the base class.

        Raises:
            NotAChainError: The model is no chain of modules.
            UncoveredParameterError: A parameter is not one of a layer ``y_t = W a_t + b``.
        """
        chain = links(at, type(self).__name__)
        columns = at.loss.exact_columns()
        flat = columns.reshape(len(columns), at.plan.samples, -1)
        matrix = torch.einsum("vni,vnj->ij", flat, flat)
        states = {p: [p.new_zeros(0)] for p in at.absent}
        first = min(
            i for i, c in enumerate(chain) if any(p.requires_grad for p in c.module.parameters())
        )
        for index in range(len(chain) - 1, first - 1, -1):
            link = chain[index]
            states |= self._factors(link, matrix)
            if index > first:
                matrix = self._carry(link, matrix)
        return states

    def _curvature(self) -> str:
        return Curvature.GGN

    def _mean_inputs(self) -> bool:
        return False

    def _carry(self, link: Link, matrix: Tensor) -> Tensor:
        """``1/N sum_n J_n^T M J_n``, and what the curvature adds of the module's own."""
        samples, shape = len(link.output), link.output.shape
        rows = torch.stack(
            [link.pull(row.expand(samples, -1).reshape(shape)).flatten(1) for row in matrix], 1
        )  # [N, D, D'], the product M J_n
        carried = torch.stack(
            [link.pull(column.reshape(shape)).flatten(1).mean(0) for column in rows.unbind(-1)]
        )
        kind = self._curvature()
        residual = None if kind == Curvature.GGN else link.residual()
        if residual is None:
            return carried
        diagonal = residual.flatten(1).sum(0)
        if kind == Curvature.PCH_CLIP:
            diagonal = diagonal.clamp(min=0)
        elif kind == Curvature.PCH_ABS:
            diagonal = diagonal.abs()
        return carried + diagonal.diag()

    def _factors(self, link: Link, matrix: Tensor) -> dict[Tensor, list[Tensor]]:
        rule = link.rule()
        if rule is None:
            return {}
        found: dict[Tensor, list[Tensor]] = {}
        for name, parameter in link.module.named_parameters():
            if not parameter.requires_grad:
                continue
            inputs, outer = self._layer(link, rule, matrix, name)
            if name == "bias":
                found[parameter] = [outer]
            elif self._mean_inputs():
                mean = inputs.sum(1).mean(0)
                found[parameter] = [outer, torch.outer(mean, mean)]
            else:
                flat = inputs.flatten(0, 1)
                found[parameter] = [outer, flat.T @ flat / len(inputs)]
        return found

    def _layer(
        self, link: Link, rule: LayerRule, matrix: Tensor, name: str
    ) -> tuple[Tensor, Tensor]:
        """The layer's inputs ``[N, T, K]``, and the matrix summed over pairs of positions."""
        units = torch.arange(matrix.shape[0], device=matrix.device).to(matrix.dtype)
        numbered = units.reshape(1, *link.output.shape[1:]).expand(link.output.shape)
        a, s = (rule.arranged(t, Layout(), len(numbered)) for t in (link.input, numbered))
        made = rule.matrices(link.module, "weight", a, s)
        if made is None or name not in ("weight", "bias"):
            raise UncoveredParameterError(
                f"parameter '{name}' of {type(link.module).__name__}: {type(self).__name__} has no "
                "Kronecker factors for it; freeze it, or use DiagGGNMC"
            )
        inputs, places = made.ordered(), made.cotangents[0].long()  # [T, O]
        outer = torch.stack([matrix[places[t]] for t in range(len(places))]).sum(0)
        outer = torch.stack([outer[:, places[t]] for t in range(len(places))]).sum(0)
        return inputs, outer


class KFRA(_Averaged):
    """Kronecker factors of the batch-averaged Gauss-Newton matrix, in ``p.kfra``.

    ``[B, A]``, or ``[B]`` of a bias: A as in ``KFAC``, and B the loss Hessian summed over the
    batch, carried back by ``1/N sum_n J_n^T B J_n`` through each module (and summed over the pairs
    of positions of a convolution). For chains of modules only.
    """

    savefield = "kfra"


class HBP(_Averaged):
    """Modular block-diagonal curvature: the family that KFAC, KFLR and KFRA belong to.

    With the strategy "sqrt" it is KFLR ("exact") or KFAC with one draw ("sampling"), for any
    architecture; with "average" (and "sum") it is KFRA on a chain, with the modules' second
    derivatives left out ("ggn"), kept ("hessian"), clipped at zero ("pch-clip") or made absolute
    ("pch-abs") after they were summed over the batch. The factors are those of these.
    """

    def __init__(
        self,
        curv_type: str,
        loss_hessian_strategy: str,
        backprop_strategy: str,
        ea_strategy: str,
        savefield: str = "hbp",
    ) -> None:
        """Chooses the approximation.

        Args:
            curv_type: One of ``Curvature.CHOICES``.
            loss_hessian_strategy: One of ``LossHessianStrategy.CHOICES``.
            backprop_strategy: One of ``BackpropStrategy.CHOICES``.
            ea_strategy: One of ``ExpectationApproximation.CHOICES``; with CHEN the factor A is
                ``E[a] E[a]^T``, of layers without extra axes.
            savefield: The attribute.

        Raises:
            ValueError: An option is unknown, or the options have no meaning together.
        """
        for value, options in (
            (curv_type, Curvature),
            (loss_hessian_strategy, LossHessianStrategy),
            (backprop_strategy, BackpropStrategy),
            (ea_strategy, ExpectationApproximation),
        ):
            choices: tuple[str, ...] = options.CHOICES
            if value not in choices:
                raise ValueError(f"{value!r} is no {options.__name__}; there are {choices}")
        root = backprop_strategy == BackpropStrategy.SQRT
        if root == (loss_hessian_strategy == LossHessianStrategy.SUM):
            raise ValueError(
                "backprop_strategy 'sqrt' goes with loss_hessian_strategy 'exact' or 'sampling', "
                "and 'average' with 'sum'"
            )
        if root and curv_type != Curvature.GGN:
            raise ValueError(
                f"backprop_strategy 'sqrt' carries the Gauss-Newton matrix only, not {curv_type!r}"
            )
        if root and ea_strategy == ExpectationApproximation.CHEN:
            raise ValueError("the expectation approximation of Chen goes with 'average' only")
        self.curv_type, self.loss_hessian_strategy = curv_type, loss_hessian_strategy
        self.backprop_strategy, self.ea_strategy = backprop_strategy, ea_strategy
        self.savefield = savefield

    def compute(self, at: Pass) -> dict[Tensor, Any]:
        """See the base class."""
        if self.backprop_strategy == BackpropStrategy.BATCH_AVERAGE:
            return super().compute(at)
        exact = self.loss_hessian_strategy == LossHessianStrategy.EXACT
        same = KFLR() if exact else KFAC()
        return {p: same.finish(state) for p, state in same.compute(at).items()}

    def _curvature(self) -> str:
        return self.curv_type

    def _mean_inputs(self) -> bool:
        return self.ea_strategy == ExpectationApproximation.CHEN

    def _layer(
        self, link: Link, rule: LayerRule, matrix: Tensor, name: str
    ) -> tuple[Tensor, Tensor]:
        inputs, outer = super()._layer(link, rule, matrix, name)
        if self._mean_inputs() and inputs.shape[1] > 1:
            raise UncoveredParameterError(
                f"parameter '{name}' of {type(link.module).__name__}: the expectation "
                "approximation of Chen is defined for layers without extra axes"
            )
        return inputs, outer
