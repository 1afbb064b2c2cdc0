"""A recorded forward pass to second order: its Jacobian, and the second derivatives that it has."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TypeVar

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge
from torch.func import functional_call
from torch.utils._pytree import tree_leaves

from curvserve.engine.double_backward import derivative, gradients, slopes
from curvserve.engine.errors import EngineError, ReplayError, SecondDerivativeError
from curvserve.engine.graph import RecordedCall, read
from curvserve.engine.kernels import difference, plain_kernels
from curvserve.engine.losses import LossAt
from curvserve.engine.plan import plan
from curvserve.engine.products import Product
from curvserve.engine.recording import Call
from curvserve.engine.second_order import Pass

__all__ = [
    "Linearised",
    "ggn_product",
    "hessian_product",
    "loss_ggn_product",
    "rerun",
    "root",
    "twice_differentiable",
]

T = TypeVar("T")


class Linearised:
    """A forward pass as a function f of some parameters, to second order.

    Attributes:
        parameters: The parameters, in the order of all arguments and results.
    """

    def __init__(self, output: GradientEdge, like: Tensor, parameters: Sequence[Tensor]) -> None:
        """Prepares; nothing is computed yet.

        Args:
            output: The edge of the output f.
            like: The output, for its shape and type.
            parameters: The parameters.
        """
        self.parameters = list(parameters)
        self._output, self._like = output, like
        self._pull: tuple[Tensor, list[Tensor | None]] | None = None

    def pull(self, cotangent: Tensor) -> tuple[Tensor, ...]:
        """``J^T u``: one tensor for each parameter."""
        return derivative([self._output], self.parameters, [cotangent], self.parameters)

    def push(self, vectors: Sequence[Tensor]) -> Tensor:
        """``J v``, of the output's shape."""
        if self._pull is None:
            dummy = torch.zeros_like(self._like, requires_grad=True)
            self._pull = dummy, gradients([self._output], self.parameters, [dummy])
        dummy, pulled = self._pull
        return derivative(pulled, [dummy], vectors, [dummy])[0]

    def curvature(self, cotangent: Tensor) -> Product:
        """``v -> (d^2 <u, f> / dp^2) v``: what curvature f itself has along the cotangent u."""
        found = slopes([self._output], self.parameters, [cotangent])
        return lambda v: derivative(found, self.parameters, v, self.parameters)


def ggn_product(model: Linearised, loss: Callable[[Tensor], Tensor]) -> Product:
    """``v -> J^T H J v`` with the product ``u -> H u`` of the loss at the output."""
    return lambda v: model.pull(loss(model.push(v)))


def hessian_product(model: Linearised, loss: LossAt) -> Product:
    """``v -> (d^2 loss / dp^2) v``: the Gauss-Newton product and the model's own curvature."""
    outer, inner = ggn_product(model, loss.hessian_product), model.curvature(loss.gradient())
    return lambda v: tuple(a + b for a, b in zip(outer(v), inner(v), strict=True))


def loss_ggn_product(loss: LossAt) -> Callable[[Tensor], Tensor]:
    """``u -> S S^T u`` for the factor S of the loss Hessian."""
    like = loss.outputs
    places = torch.arange(like.numel(), device=like.device).reshape(like.shape)
    order = loss.layout.samples_first(places, loss.samples).reshape(loss.samples, -1)
    factor = loss.exact_columns().flatten(1)[:, order]

    def product(vector: Tensor) -> Tensor:
        flat = vector.flatten()[order]
        found = torch.empty_like(like).flatten()
        found[order] = torch.einsum("vnd,vn->nd", factor, torch.einsum("vnd,nd->vn", factor, flat))
        return found.reshape(like.shape)

    return product


def root(at: Pass) -> tuple[RecordedCall, int]:
    """The outermost recorded call whose result is the loss's input, and the index of that result.

    Raises:
        EngineError: The loss's input is computed from the model's result outside the model.
    """
    found = [
        (recorded, index)
        for recorded in at.graph.calls
        for index, edge in recorded.edges.items()
        if edge.node is at.output.node and edge.output_nr == at.output.output_nr
    ]
    outermost = min(at.graph.calls, key=lambda c: (c.call.start, -c.call.end))
    for recorded, index in found:
        if recorded is outermost:
            return recorded, index
    raise EngineError(
        "the forward pass has to be run again here, which needs the loss's input to be the very "
        "result of the extended model: move what is computed in between into the model"
    )


def rerun(call: Call, index: int, expected: Tensor) -> Tensor:
    """Runs a call again with plain kernels; returns one of its results.

    Buffers are left as they are.

    Raises:
        ReplayError: The result is another than the recorded one.
    """
    if not call.unchanged():
        raise ReplayError(
            f"an input of {type(call.module).__name__} was modified in place since its forward "
            "pass, so that it cannot be run again"
        )
    buffers = {name: b.clone() for name, b in call.module.named_buffers()}
    with torch.enable_grad(), plain_kernels():
        results = tree_leaves(functional_call(call.module, buffers, call.args, call.kwargs))
    result: Tensor = [t for t in results if isinstance(t, Tensor)][index]
    limit = difference(expected) * float(expected.abs().max())
    if not float((result.detach() - expected).abs().max()) <= limit:
        raise ReplayError(
            f"{type(call.module).__name__} gave another output when run again than in its forward "
            "pass: it draws random numbers (dropout in training mode?), its parameters were "
            "changed since, or it changes its own state"
        )
    return result


def twice_differentiable(at: Pass, compute: Callable[[Pass], T]) -> T:
    """Computes what needs second derivatives; with plain kernels where fused ones have none.

    Raises:
        SecondDerivativeError: An operation cannot be differentiated twice in any way.
    """
    try:
        return compute(at)
    except SecondDerivativeError:
        recorded, index = root(at)
        again = rerun(recorded.call, index, at.loss.outputs)
    assert again.grad_fn is not None
    edge = GradientEdge(again.grad_fn, again.output_nr)
    graph = read(edge)
    found = plan(graph, edge, again.detach())
    return compute(replace(at, graph=graph, plan=found, output=edge))
