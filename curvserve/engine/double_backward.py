"""Derivatives that are differentiated again, and the refusal of those that cannot be.

All is reverse mode, for forward mode lacks rules for part of torch: a product with the Jacobian is
the derivative of a product with its transpose.
"""

import re
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge

from curvserve.engine.errors import SecondDerivativeError
from curvserve.engine.graph import nodes

__all__ = ["Place", "check_twice", "derivative", "gradients", "slopes"]

Place = Tensor | GradientEdge
"""What is differentiated, or by what."""

# Nodes that stand where a graph is cut, and raise only if they are run.
_CUTS = frozenset({"DelayedError", "torch::autograd::Error", "Error"})
# Its second derivative takes the norms for constants.
_WRONG = frozenset({"WeightNormInterfaceBackward0"})
_MISSING = re.compile("derivative for .* is not implemented|differentiate twice|double backward")


def gradients(
    outputs: Sequence[Place],
    inputs: Sequence[Place],
    cotangents: Sequence[Tensor],
    retain_graph: bool = True,
) -> list[Tensor | None]:
    """``J^T u`` as a function of the cotangents u, None where nothing depends on an input.

    Raises:
        SecondDerivativeError: An operation in between can be differentiated once only.
    """
    found = _grad(outputs, inputs, cotangents, retain_graph)
    _refuse(_CUTS, found, inputs)
    return found


def slopes(
    outputs: Sequence[Place], inputs: Sequence[Place], cotangents: Sequence[Tensor]
) -> list[Tensor | None]:
    """``J^T u`` as a function of the inputs, to be differentiated by them.

    Raises:
        SecondDerivativeError: An operation in between has no second derivative, or a wrong one.
    """
    # Requiring a gradient, so that a gradient that is cut from the inputs has a graph to tell it.
    seeds = [cotangent.detach().requires_grad_() for cotangent in cotangents]
    found = _grad(outputs, inputs, seeds)
    check_twice(found, inputs)
    return found


def check_twice(gradients: Iterable[Tensor | None], inputs: Sequence[Place]) -> None:
    """Looks for what torch would be silent about when the gradients are differentiated.

    Raises:
        SecondDerivativeError: An operation in between has no second derivative, or a wrong one.
    """
    _refuse(_CUTS | _WRONG, gradients, inputs)


def derivative(
    values: Sequence[Place | None],
    inputs: Sequence[Place],
    vectors: Sequence[Tensor],
    like: Sequence[Tensor],
    *,
    detach: bool = True,
    retain_graph: bool = True,
) -> tuple[Tensor, ...]:
    """The derivative of ``sum <values, vectors>``.

    Args:
        values: What to differentiate, None where there is nothing.
        inputs: By what.
        vectors: One for each value.
        like: For each input a tensor of its shape, for the zeros where nothing depends on it.
        detach: Whether the result is cut from the graph.
        retain_graph: Whether the graph is to be used again.

    Returns:
        One tensor for each input.

    Raises:
        SecondDerivativeError: An operation in between has no such derivative.
    """
    pairs = [
        (value, vector)
        for value, vector in zip(values, vectors, strict=True)
        if isinstance(value, GradientEdge) or (value is not None and value.requires_grad)
    ]
    if not pairs:
        return tuple(torch.zeros_like(t, requires_grad=False) for t in like)
    kept, weights = zip(*pairs, strict=True)
    found = _grad(kept, inputs, weights, retain_graph, create_graph=not detach)
    filled = (torch.zeros_like(t) if f is None else f for f, t in zip(found, like, strict=True))
    return tuple(f.detach() if detach else f for f in filled)


def _grad(
    outputs: Any, inputs: Any, vectors: Any, retain_graph: bool = True, create_graph: bool = True
) -> list[Tensor | None]:
    """``torch.autograd.grad``, whose declaration does not know edges and tensors side by side."""
    if not inputs:
        return []
    try:
        return list(
            torch.autograd.grad(
                outputs, inputs, vectors, retain_graph, create_graph, allow_unused=True
            )
        )
    except RuntimeError as error:
        if not _MISSING.search(str(error)):
            raise
        raise _error(str(error)) from error


def _refuse(
    kinds: frozenset[str], gradients: Iterable[Tensor | None], inputs: Sequence[Place]
) -> None:
    made = [g.grad_fn for g in gradients if g is not None and g.grad_fn is not None]
    ends = [i.node if isinstance(i, GradientEdge) else i.grad_fn for i in inputs]
    found = kinds.intersection(node.name() for node in nodes(*made, until=ends))
    if found & _CUTS:
        raise _error("a function is marked with @once_differentiable")
    if found:
        raise _error("torch has a wrong second derivative of weight_norm")


def _error(why: str) -> SecondDerivativeError:
    return SecondDerivativeError(
        f"an operation cannot be differentiated twice: {why}\nAttention, recurrent nets, weight "
        "norm and bags of embeddings can where the forward pass runs under "
        "curvserve.engine.products.plain_kernels(); what torch.compile made and functions marked "
        "with @once_differentiable cannot."
    )
