"""Diagonals of the Hessian of the loss.

With f the model's output and g the gradient of the loss there, the Hessian is
``J^T H J + sum_k g_k d^2 f_k / dp^2``: the Gauss-Newton matrix, and the *residual* of curvature
that the model itself has. The first is had as everywhere here. The second is zero for networks
that are piecewise linear (found by a probe with a random vector), and is otherwise computed one
column at a time: of the outputs of the layer where the layer is linear in the parameter, used once
and has no more outputs than parameters, else of the parameter itself, which is exact for anything
that can be differentiated twice.
"""

from collections.abc import Iterator
from typing import ClassVar

import torch
from torch import Tensor

from curvserve.engine.double_backward import Place, derivative, slopes
from curvserve.engine.graph import RecordedCall
from curvserve.engine.layers import LayerRule
from curvserve.engine.linearised import twice_differentiable
from curvserve.engine.losses.base import LossAt
from curvserve.engine.parts import arranged
from curvserve.engine.plan import Account
from curvserve.engine.quantities.base import Quantity
from curvserve.engine.quantities.diagonal import square_sums
from curvserve.engine.second_order import Pass

__all__ = ["BatchDiagHessian", "DiagHessian"]


class DiagHessian(Quantity):
    """The diagonal of the Hessian of the loss, in ``p.diag_h``, shape of ``p``.

    It has the scale of the loss, and cross terms of parameters that are used more than once. One
    backward pass for each output unit of a sample, and where the model is not piecewise linear
    one for each unit of each layer's output.
    """

    savefield = "diag_h"

    def compute(self, at: Pass) -> dict[Tensor, Tensor]:
        """See the base class."""
        return twice_differentiable(at, self._compute)

    def _compute(self, at: Pass) -> dict[Tensor, Tensor]:
        positive, negative = _signed_columns(at.loss)
        states = self._squares(at, positive)
        if len(negative):
            for parameter, part in self._squares(at, negative).items():
                states[parameter] = states[parameter] - part
        residual = _Residual(at, 1 if self.per_sample is None else at.plan.samples)
        for parameter, part in residual.of_layers():
            states[parameter] += self._reduce(part)
        for other in residual.others:
            states[other] += self._of_parameter(residual, other)
        return states

    def _squares(self, at: Pass, columns: Tensor) -> dict[Tensor, Tensor]:
        return square_sums(at, columns)

    def _reduce(self, terms: Tensor) -> Tensor:
        return terms.sum(0)

    def _of_parameter(self, residual: "_Residual", parameter: Tensor) -> Tensor:
        return residual.diagonal(parameter, residual.gradient)


class BatchDiagHessian(DiagHessian):
    """Each sample's share of ``DiagHessian``, in ``p.diag_h_batch``, shape ``[N, *p.shape]``."""

    savefield = "diag_h_batch"
    per_sample: ClassVar[int | None] = 0

    def _squares(self, at: Pass, columns: Tensor) -> dict[Tensor, Tensor]:
        states: dict[Tensor, Tensor] = {}
        for rows in at.rows(columns):
            for parameter, own in rows.items():
                part = own.dense().square()
                states[parameter] = states[parameter].add_(part) if parameter in states else part
        return states

    def _reduce(self, terms: Tensor) -> Tensor:
        return terms

    def _of_parameter(self, residual: "_Residual", parameter: Tensor) -> Tensor:
        shares = residual.shares_of_gradient()
        return torch.stack([residual.diagonal(parameter, share) for share in shares])


def _signed_columns(loss: LossAt) -> tuple[Tensor, Tensor]:
    """Columns S and T, ``H_n = sum_v S_vn S_vn^T - sum_v T_vn T_vn^T``; no T, mostly."""
    if loss.rule.is_hessian:
        columns = loss.exact_columns(thin=True)
        return columns, columns[:0]
    places = torch.arange(loss.outputs.numel()).reshape(loss.outputs.shape)
    order = loss.layout.samples_first(places, loss.samples).reshape(loss.samples, -1)
    values, vectors = torch.linalg.eigh(loss.hessian(order.to(loss.outputs.device)))
    signed = []
    for sign in (1, -1):
        roots = (sign * values).clamp(min=0).sqrt().unsqueeze(1) * vectors
        columns = torch.zeros_like(loss.outputs).flatten().repeat(values.shape[1], 1)
        columns[:, order] = roots.movedim(2, 0)
        signed.append(columns.unflatten(1, loss.outputs.shape))
    return signed[0], signed[1]


class _Residual:
    """The residual ``d^2 <g, f> / dp^2`` of one pass.

    Attributes:
        gradient: The gradient g of the loss with respect to the output.
        others: The parameters that no single layer is linear in, and after :meth:`of_layers` those
            that are cheaper one element at a time.
    """

    def __init__(self, at: Pass, repeats: int) -> None:
        """Sorts the parameters.

        Args:
            at: The pass.
            repeats: How often the elements of a parameter of ``others`` are gone through.
        """
        self._at, self._repeats = at, repeats
        self.gradient = at.loss.gradient()
        uses: dict[Tensor, list[tuple[RecordedCall, Account, str]]] = {}
        for account in at.plan.accounts:
            recorded = at.graph.calls[account.call]
            for name in account.names:
                parameter = recorded.call.module.get_parameter(name)
                uses.setdefault(parameter, []).append((recorded, account, name))
        self._layers: dict[RecordedCall, list[tuple[Tensor, Account, str]]] = {}
        self.others: list[Tensor] = []
        for used, places in uses.items():
            recorded, account, name = places[0]
            if len(places) == 1 and isinstance(account.way, LayerRule):
                self._layers.setdefault(recorded, []).append((used, account, name))
            else:
                self.others.append(used)

    def of_layers(self) -> Iterator[tuple[Tensor, Tensor]]:
        """For parameters in which their layer is linear, terms ``[N, *p]`` of the diagonal.

        With e a unit of the layer's output and R the residual with respect to that output, the
        terms are the rows of e times the rows of R e.
        """
        edges = [recorded.edges[0] for recorded in self._layers]
        gradients = slopes([self._at.output], edges, [self.gradient])
        for (recorded, parameters), edge, gradient in zip(
            self._layers.items(), edges, gradients, strict=True
        ):
            if gradient is None or not _curved(gradient, edge):
                continue
            # A scale by channel has fewer elements than its layer's output has units.
            elements = sum(used.numel() for used, _, _ in parameters)
            if elements * self._repeats < gradient.numel() // self._at.plan.samples:
                self.others += [used for used, _, _ in parameters]
                continue
            for unit in self._units(gradient, parameters[0][1]):
                curved = _product(gradient, edge, unit)
                for parameter, account, name in parameters:
                    yield parameter, self._term(recorded, account, name, unit, curved)

    def _units(self, like: Tensor, account: Account) -> Iterator[Tensor]:
        """The units of the layer's output, each of all samples at once."""
        samples = self._at.plan.samples
        unit = torch.zeros_like(like, requires_grad=False)
        view = account.layout.samples_first(unit, samples)
        for index in torch.cartesian_prod(*[torch.arange(n) for n in view.shape[1:]]).reshape(
            -1, view.dim() - 1
        ):
            place = (slice(None), *index.tolist())
            view[place] = 1
            yield unit
            view[place] = 0

    def _term(
        self, recorded: RecordedCall, account: Account, name: str, unit: Tensor, curved: Tensor
    ) -> Tensor:
        rule, call, samples = account.way, recorded.call, self._at.plan.samples
        assert isinstance(rule, LayerRule)
        a, first = arranged(account, call, unit, samples)
        second = rule.arranged(curved, account.layout, samples)
        return rule.rows(call.module, name, a, first) * rule.rows(call.module, name, a, second)

    def diagonal(self, parameter: Tensor, gradient: Tensor) -> Tensor:
        """The diagonal with respect to a parameter, one column for each of its elements."""
        (slope,) = slopes([self._at.output], [parameter], [gradient])
        diagonal = torch.zeros_like(parameter, requires_grad=False)
        if slope is None or not _curved(slope, parameter):
            return diagonal
        unit, found = torch.zeros_like(diagonal).flatten(), diagonal.view(-1)
        for i in range(len(unit)):
            unit[i] = 1
            found[i] = _product(slope, parameter, unit.view_as(parameter)).flatten()[i]
            unit[i] = 0
        return diagonal

    def shares_of_gradient(self) -> Iterator[Tensor]:
        """The gradient g with all but one sample set to zero, sample by sample."""
        for n in range(self._at.plan.samples):
            share = torch.zeros_like(self.gradient)
            layout, samples = self._at.loss.layout, self._at.plan.samples
            layout.samples_first(share, samples)[n] = layout.samples_first(self.gradient, samples)[
                n
            ]
            yield share


def _product(slope: Tensor, place: Place, vector: Tensor) -> Tensor:
    return derivative([slope], [place], [vector], [slope])[0]


def _curved(value: Tensor, place: Place) -> bool:
    """Whether a derivative depends on where it was taken: almost surely seen by a random vector."""
    generator = torch.Generator().manual_seed(0)
    seed = torch.randn(value.shape, generator=generator, dtype=torch.float64).to(value)
    return bool((_product(value, place, seed) != 0).any())
