"""Matrix-free products with Jacobians, Hessians and Gauss-Newton matrices, as plain functions.

Under BackPACK's names and in its argument order. All are reverse mode; the graph is kept, so that
products can be repeated. (Pearlmutter, Fast exact multiplication by the Hessian, 1994;
Schraudolph, Fast curvature matrix-vector products, 2002.)
"""

from collections.abc import Sequence
from typing import TypeAlias

import torch
from torch import Tensor, nn

__all__ = [
    "L_op",
    "R_op",
    "ggn_vector_product",
    "ggn_vector_product_from_plist",
    "hessian_vector_product",
    "jacobian_vector_product",
    "transposed_jacobian_vector_product",
]

Tensors: TypeAlias = Tensor | Sequence[Tensor]


def R_op(
    ys: Tensors, xs: Tensors, vs: Tensors, retain_graph: bool = True, detach: bool = True
) -> tuple[Tensor, ...]:
    """``J v``: products with the Jacobian of ys with respect to xs.

    Args:
        ys: What was computed, one tensor or several.
        xs: What it was computed of.
        vs: A vector for each of xs, of its shape.
        retain_graph: Keep the graph of ys.
        detach: Detach the results.

    Returns:
        A tensor for each of ys, of its shape; zeros where it does not depend on xs.

    Raises:
        ValueError: A vector has another shape than its x, or their numbers differ.
        RuntimeError: An operation cannot be differentiated twice, as fused attention cannot: run
            the forward pass under ``torch.nn.attention.sdpa_kernel(SDPBackend.MATH)``.
    """
    outputs, inputs, vectors = _tuple(ys), _tuple(xs), _like(xs, vs)
    with torch.enable_grad():
        dummies = [torch.zeros_like(y).requires_grad_() for y in outputs]
        pulled = _gradients(outputs, inputs, dummies, True, create_graph=True)
        pairs = [(p, v) for p, v in zip(pulled, vectors, strict=True) if p is not None]
        pairs = [(p, v) for p, v in pairs if p.requires_grad]
        if not pairs:
            return tuple(torch.zeros_like(y) for y in outputs)
        found = torch.autograd.grad(
            [p for p, _ in pairs],
            dummies,
            [v for _, v in pairs],
            create_graph=not detach,
            retain_graph=retain_graph,
            allow_unused=True,
        )
    return _filled(found, outputs, detach)


def L_op(
    ys: Tensors, xs: Tensors, ws: Tensors, retain_graph: bool = True, detach: bool = True
) -> tuple[Tensor, ...]:
    """``J^T w``: products with the transposed Jacobian of ys with respect to xs.

    Args:
        ys: What was computed, one tensor or several.
        xs: What it was computed of.
        ws: A vector for each of ys, of its shape.
        retain_graph: Keep the graph of ys.
        detach: Detach the results.

    Returns:
        A tensor for each of xs, of its shape; zeros where ys does not depend on it.

    Raises:
        ValueError: A vector has another shape than its y, or their numbers differ.
    """
    inputs = _tuple(xs)
    found = _gradients(_tuple(ys), inputs, _like(ys, ws), retain_graph, create_graph=not detach)
    return _filled(found, inputs, detach)


def jacobian_vector_product(
    f: Tensors, x: Tensors, v: Tensors, retain_graph: bool = True, detach: bool = True
) -> tuple[Tensor, ...]:
    """Another name of :func:`R_op`."""
    return R_op(f, x, v, retain_graph, detach)


def transposed_jacobian_vector_product(
    f: Tensors, x: Tensors, v: Tensors, retain_graph: bool = True, detach: bool = True
) -> tuple[Tensor, ...]:
    """Another name of :func:`L_op`."""
    return L_op(f, x, v, retain_graph, detach)


def hessian_vector_product(
    f: Tensor,
    params: Tensors,
    v: Tensors,
    grad_params: Tensors | None = None,
    detach: bool = True,
) -> tuple[Tensor, ...]:
    """``H v`` with the Hessian of a scalar with respect to all of the parameters together.

    Args:
        f: The scalar, a loss.
        params: The parameters.
        v: A vector for each of them, of its shape.
        grad_params: The gradient of f, if it is there already (made with ``create_graph=True``).
        detach: Detach the results.

    Returns:
        A tensor for each parameter, of its shape.

    Raises:
        ValueError: A vector has another shape than its parameter, or their numbers differ.
        RuntimeError: An operation cannot be differentiated twice; see :func:`R_op`.
    """
    inputs, vectors = _tuple(params), _like(params, v)
    with torch.enable_grad():
        slopes: Sequence[Tensor | None]
        if grad_params is None:
            slopes = torch.autograd.grad(f, inputs, create_graph=True, allow_unused=True)
        else:
            slopes = _tuple(grad_params)
        pairs = [(s, u) for s, u in zip(slopes, vectors, strict=True) if s is not None]
        pairs = [(s, u) for s, u in pairs if s.requires_grad]
        if not pairs:
            return tuple(torch.zeros_like(p) for p in inputs)
        found = torch.autograd.grad(
            [s for s, _ in pairs],
            inputs,
            [u for _, u in pairs],
            create_graph=not detach,
            retain_graph=True,
            allow_unused=True,
        )
    return _filled(found, inputs, detach)


def ggn_vector_product(
    loss: Tensor, output: Tensor, model: nn.Module, v: Tensors
) -> tuple[Tensor, ...]:
    """``J^T H J v`` over the parameters of a model that require gradients.

    Args:
        loss: The loss, computed of ``output``.
        output: The model's output.
        model: The model.
        v: A vector for each of its parameters that require gradients.

    Returns:
        A tensor for each of them.
    """
    trained = [p for p in model.parameters() if p.requires_grad]
    return ggn_vector_product_from_plist(loss, output, trained, v)


def ggn_vector_product_from_plist(
    loss: Tensor, output: Tensor, plist: Sequence[Tensor], v: Tensors
) -> tuple[Tensor, ...]:
    """``J^T H J v`` over the parameters given: the Gauss-Newton matrix of the loss.

    J is the Jacobian of the output with respect to the parameters, H the Hessian of the loss with
    respect to the output.

    Args:
        loss: The loss, computed of ``output``.
        output: The model's output.
        plist: The parameters.
        v: A vector for each of them.

    Returns:
        A tensor for each of them.
    """
    pushed = R_op(output, plist, v)
    return L_op(output, plist, hessian_vector_product(loss, output, pushed))


def _gradients(
    ys: Sequence[Tensor],
    xs: Sequence[Tensor],
    seeds: Sequence[Tensor],
    retain_graph: bool,
    create_graph: bool,
) -> list[Tensor | None]:
    used = [(y, s) for y, s in zip(ys, seeds, strict=True) if y.requires_grad]
    if not used:
        return [None for _ in xs]
    return list(
        torch.autograd.grad(
            [y for y, _ in used],
            xs,
            [s for _, s in used],
            retain_graph=retain_graph,
            create_graph=create_graph,
            allow_unused=True,
        )
    )


def _filled(
    found: Sequence[Tensor | None], like: Sequence[Tensor], detach: bool
) -> tuple[Tensor, ...]:
    filled = (torch.zeros_like(t) if f is None else f for f, t in zip(found, like, strict=True))
    return tuple(f.detach() if detach else f for f in filled)


def _tuple(tensors: Tensors) -> tuple[Tensor, ...]:
    return (tensors,) if isinstance(tensors, Tensor) else tuple(tensors)


def _like(expected: Tensors, vectors: Tensors) -> tuple[Tensor, ...]:
    shapes = [tuple(t.shape) for t in _tuple(expected)]
    found = [tuple(t.shape) for t in _tuple(vectors)]
    if shapes != found:
        raise ValueError(f"vectors of the shapes {shapes} are needed, got {found}")
    return _tuple(vectors)
