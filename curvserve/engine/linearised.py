"""Products with the Jacobian and the second derivatives of a forward pass.

Everything is reverse mode: a product with the Jacobian is the derivative of a product with its
transpose (the double-backward trick), because forward mode lacks rules for part of torch.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TypeVar

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._pytree import tree_leaves

from curvserve.engine.errors import EngineError, ReplayError
from curvserve.engine.graph import RecordedCall, nodes, read
from curvserve.engine.losses import LossAt
from curvserve.engine.plain import PlainOperations
from curvserve.engine.plan import plan
from curvserve.engine.recording import Call
from curvserve.engine.second_order import Pass

__all__ = [
    "Linearised",
    "check_differentiable",
    "loss_hessian_product",
    "not_differentiable",
    "root",
    "rerun",
    "twice_differentiable",
]

T = TypeVar("T")
_TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-4}


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

    def pull(self, cotangent: Tensor) -> list[Tensor]:
        """``J^T u``: one tensor for each parameter."""
        return self._filled(self._gradients(cotangent, create_graph=False))

    def push(self, vectors: Sequence[Tensor]) -> Tensor:
        """``J v``, of the output's shape."""
        if self._pull is None:
            with torch.enable_grad():
                dummy = torch.zeros_like(self._like).requires_grad_()
                self._pull = dummy, self._gradients(dummy, create_graph=True)
            check_differentiable(self._pull[1])
        dummy, pulled = self._pull
        return _derivative(pulled, [dummy], vectors)[0]

    def curve(self, cotangent: Tensor, vectors: Sequence[Tensor]) -> list[Tensor]:
        """``(d^2 <u, f> / dp^2) v``: what curvature f itself has along the cotangent u."""
        with torch.enable_grad():
            # Requiring a gradient, so that what cannot be differentiated twice says so.
            seed = cotangent.detach().requires_grad_()
            gradients = self._gradients(seed, create_graph=True)
        check_differentiable(gradients)
        return _derivative(gradients, self.parameters, vectors)

    def _gradients(self, cotangent: Tensor, create_graph: bool) -> list[Tensor | None]:
        return list(
            torch.autograd.grad(
                [self._output],
                self.parameters,
                [cotangent],
                retain_graph=True,
                create_graph=create_graph,
                allow_unused=True,
            )
        )

    def _filled(self, gradients: Sequence[Tensor | None]) -> list[Tensor]:
        return [
            torch.zeros_like(p) if g is None else g.detach()
            for p, g in zip(self.parameters, gradients, strict=True)
        ]


def _derivative(
    values: Sequence[Tensor | None], inputs: Sequence[Tensor], vectors: Sequence[Tensor]
) -> list[Tensor]:
    """The derivative of ``sum <values, vectors>``, zero where nothing depends on an input."""
    pairs = [
        (value, vector)
        for value, vector in zip(values, vectors, strict=True)
        if value is not None and value.requires_grad
    ]
    if not pairs:
        return [torch.zeros_like(i) for i in inputs]
    found = torch.autograd.grad(
        [value for value, _ in pairs],
        list(inputs),
        [vector for _, vector in pairs],
        retain_graph=True,
        allow_unused=True,
    )
    return [
        torch.zeros_like(i) if f is None else f.detach() for i, f in zip(inputs, found, strict=True)
    ]


def loss_hessian_product(loss: LossAt, columns: Tensor, vector: Tensor) -> Tensor:
    """``S S^T v`` for the factor S of the loss Hessian, ``[V, *outputs.shape]``."""
    places = torch.arange(vector.numel(), device=vector.device).reshape(vector.shape)
    order = loss.layout.samples_first(places, loss.samples).reshape(loss.samples, -1)
    factor, flat = columns.flatten(1)[:, order], vector.flatten()[order]
    product = torch.empty_like(vector.flatten())
    product[order] = torch.einsum("vnd,vn->nd", factor, torch.einsum("vnd,nd->vn", factor, flat))
    return product.reshape(vector.shape)


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
    """Runs a call again in a way that can be differentiated twice; returns one of its results.

    Attention, weight norm and bags of embeddings are computed by plain operations, recurrent nets
    without cuDNN; buffers are left as they are.

    Raises:
        ReplayError: The result is another than the recorded one.
    """
    if not call.unchanged():
        raise ReplayError(
            f"an input of {type(call.module).__name__} was modified in place since its forward "
            "pass, so that it cannot be run again"
        )
    buffers = {name: b.clone() for name, b in call.module.named_buffers()}
    plain = sdpa_kernel(SDPBackend.MATH), torch.backends.cudnn.flags(False), PlainOperations()
    with torch.enable_grad(), plain[0], plain[1], plain[2]:
        results = tree_leaves(functional_call(call.module, buffers, call.args, call.kwargs))
    result: Tensor = [t for t in results if isinstance(t, Tensor)][index]
    limit = _TOLERANCE.get(expected.dtype, 1e-2) * float(expected.abs().max())
    if not float((result.detach() - expected).abs().max()) <= limit:
        raise ReplayError(
            f"{type(call.module).__name__} gave another output when run again than in its forward "
            "pass: it draws random numbers (dropout in training mode?), its parameters were "
            "changed since, or it changes its own state"
        )
    return result


def check_differentiable(gradients: Sequence[Tensor | None]) -> None:
    """Raises where a gradient is only apparently a function of what it was taken of.

    ``once_differentiable`` cuts the graph and leaves a node that raises, but only if it is run,
    which it is not when derivatives are taken with respect to something behind the cut.

    Raises:
        RuntimeError: There is such a node.
    """
    for gradient in gradients:
        if gradient is not None and gradient.grad_fn is not None:
            for node in nodes(gradient.grad_fn):
                if node.name() in _CUTS:
                    raise RuntimeError("a custom function is marked with @once_differentiable")


_CUTS = ("DelayedError", "torch::autograd::Error", "Error")


# Its second derivative takes the norms for constants, and so is wrong.
_WRONG_TWICE = "WeightNormInterfaceBackward0"


def twice_differentiable(at: Pass, compute: Callable[[Pass], T]) -> T:
    """Computes what needs double backward; once more on a new graph where this one cannot.

    Fused attention kernels, cuDNN's recurrent nets and bags of embeddings have no second derivative
    and fused weight norm has a wrong one; plain operations have the right one.

    Raises:
        EngineError: An operation cannot be differentiated twice in any way.
    """
    if _WRONG_TWICE not in at.graph.operations:
        try:
            return compute(at)
        except EngineError:
            raise
        except RuntimeError:
            pass
    recorded, index = root(at)
    again = rerun(recorded.call, index, at.loss.outputs)
    assert again.grad_fn is not None
    edge = GradientEdge(again.grad_fn, again.output_nr)
    graph = read(again.grad_fn)
    found = plan(graph, edge, again.detach())
    try:
        return compute(replace(at, graph=graph, plan=found, output=edge))
    except EngineError:
        raise
    except RuntimeError as error:
        raise not_differentiable(error) from error


def not_differentiable(error: RuntimeError) -> EngineError:
    """What is raised instead of what autograd says."""
    return EngineError(f"an operation of the model cannot be differentiated twice: {error}")
