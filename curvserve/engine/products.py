"""Products of vectors with the Jacobian, the Hessian and the generalized Gauss-Newton matrix.

Plain functions of an autograd graph: no hooks, nothing extended, and no matrix is ever formed. The
names, and those of their arguments, are BackPACK's.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from curvserve.engine.double_backward import check_twice, derivative, gradients, slopes
from curvserve.engine.kernels import plain_kernels

__all__ = [
    "L_op",
    "Product",
    "R_op",
    "Tensors",
    "ggn_operator",
    "ggn_vector_product",
    "ggn_vector_product_from_plist",
    "hessian_operator",
    "hessian_vector_product",
    "jacobian_vector_product",
    "plain_kernels",
    "transposed_jacobian_vector_product",
]

Tensors = Tensor | Sequence[Tensor]
"""A tensor, or a list or tuple of them."""

Product = Callable[[Sequence[Tensor]], Sequence[Tensor]]
"""``v -> A v`` of a symmetric matrix A, of and to lists of tensors shaped like the parameters."""


def R_op(
    ys: Tensors, xs: Tensors, vs: Tensors, retain_graph: bool = True, detach: bool = True
) -> tuple[Tensor, ...]:
    """The product with the Jacobian, ``(dy/dx) v``, by reverse over reverse mode.

    Pearlmutter's R-operator (Neural Computation 1994): ``J v = d(J^T u)/du^T v`` for any u.

    Args:
        ys: The outputs.
        xs: The inputs, which the outputs need not all depend on.
        vs: One vector for each input, of its shape.
        retain_graph: Whether the graph of ``ys`` is to be used again.
        detach: Whether the result is cut from the graph.

    Returns:
        One tensor for each output, of its shape; zero where it depends on no input.

    Raises:
        ValueError: A tensor has no graph or does not require a gradient, or the vectors do not
            fit.
        SecondDerivativeError: An operation in between can be differentiated once only.
    """
    outputs, inputs = _differentiable("ys", ys), _differentiable("xs", xs)
    vectors = _fitting("vs", vs, inputs)
    dummies = [torch.zeros_like(y, requires_grad=True) for y in outputs]
    pulled = gradients(outputs, inputs, dummies, retain_graph)
    return derivative(pulled, dummies, vectors, dummies, detach=detach)


def L_op(
    ys: Tensors, xs: Tensors, ws: Tensors, retain_graph: bool = True, detach: bool = True
) -> tuple[Tensor, ...]:
    """The product with the transposed Jacobian, ``(dy/dx)^T w``.

    Args:
        ys: The outputs.
        xs: The inputs, which the outputs need not all depend on.
        ws: One vector for each output, of its shape.
        retain_graph: Whether the graph of ``ys`` is to be used again.
        detach: Whether the result is cut from the graph.

    Returns:
        One tensor for each input, of its shape; zero where no output depends on it.

    Raises:
        ValueError: A tensor has no graph or does not require a gradient, or the vectors do not
            fit.
    """
    outputs, inputs = _differentiable("ys", ys), _differentiable("xs", xs)
    vectors = _fitting("ws", ws, outputs)
    return derivative(outputs, inputs, vectors, inputs, detach=detach, retain_graph=retain_graph)


def jacobian_vector_product(
    f: Tensors, x: Tensors, v: Tensors, retain_graph: bool = True, detach: bool = True
) -> tuple[Tensor, ...]:
    """:func:`R_op` by its other name."""
    return R_op(f, x, v, retain_graph, detach)


def transposed_jacobian_vector_product(
    f: Tensors, x: Tensors, v: Tensors, retain_graph: bool = True, detach: bool = True
) -> tuple[Tensor, ...]:
    """:func:`L_op` by its other name."""
    return L_op(f, x, v, retain_graph, detach)


def hessian_vector_product(
    f: Tensor,
    params: Tensors,
    v: Tensors,
    grad_params: Tensors | None = None,
    detach: bool = True,
) -> tuple[Tensor, ...]:
    """The product with the Hessian, ``(d^2 f / dp^2) v`` (Pearlmutter 1994).

    The graph of f is kept. For many products with one Hessian see :func:`hessian_operator`.

    Args:
        f: A tensor with one element, a loss, scaled as the Hessian is to be.
        params: What to differentiate by: leaves or inner tensors of the graph.
        v: One vector for each of them, of its shape.
        grad_params: The gradients of f, computed with ``create_graph=True``, if they are there
            already; f itself is then not looked at.
        detach: Whether the result is cut from the graph.

    Returns:
        One tensor for each of the parameters, of its shape; zero where f has no curvature.

    Raises:
        ValueError: f or the gradients have no graph, a parameter does not require a gradient, or
            the vectors do not fit.
        SecondDerivativeError: An operation has no second derivative, or a wrong one.
    """
    inputs = _differentiable("params", params)
    vectors = _fitting("v", v, inputs)
    found = _slopes(f, inputs) if grad_params is None else _given(grad_params, inputs)
    return derivative(found, inputs, vectors, inputs, detach=detach)


def hessian_operator(f: Tensor, params: Tensors) -> Product:
    """The Hessian as a function ``v -> (d^2 f / dp^2) v`` that can be applied any number of times.

    It computes the gradient once, and holds its graph and that of f as long as it lives: f must
    not be differentiated elsewhere without ``retain_graph=True``, nor a parameter changed in
    place.

    Args:
        f: A tensor with one element, a loss, scaled as the Hessian is to be.
        params: What to differentiate by.

    Returns:
        The product, of and to one tensor for each of the parameters; it raises ``ValueError``
        where the vectors do not fit.

    Raises:
        ValueError: f has no graph or a parameter does not require a gradient.
        SecondDerivativeError: An operation has no second derivative, or a wrong one.
    """
    inputs = _differentiable("params", params)
    found = _slopes(f, inputs)
    return lambda v: derivative(found, inputs, _fitting("v", v, inputs), inputs)


def ggn_vector_product(
    loss: Tensor, output: Tensors, model: nn.Module, v: Tensors
) -> tuple[Tensor, ...]:
    """:func:`ggn_vector_product_from_plist` for all trainable parameters of a model."""
    trained = [p for p in model.parameters() if p.requires_grad]
    return ggn_vector_product_from_plist(loss, output, trained, v)


def ggn_vector_product_from_plist(
    loss: Tensor, output: Tensors, plist: Tensors, v: Tensors
) -> tuple[Tensor, ...]:
    """The product with the generalized Gauss-Newton matrix, ``J^T H J v`` (Schraudolph 2002).

    J is the Jacobian of the output with respect to the parameters, H the Hessian of the loss with
    respect to the output. The graph is kept. For many products see :func:`ggn_operator`.

    Args:
        loss: A tensor with one element that was computed from ``output``, scaled as the matrix is
            to be.
        output: The model's output, before the loss.
        plist: The parameters.
        v: One vector for each of them, of its shape.

    Returns:
        One tensor for each of them, of its shape; zero where the loss has no curvature.

    Raises:
        ValueError: The loss was not computed from this output, the output has no graph, a
            parameter does not require a gradient, or the vectors do not fit.
        SecondDerivativeError: An operation of the model can be differentiated once only, or one of
            the loss has no second derivative, or a wrong one.
    """
    return tuple(ggn_operator(loss, output, plist)([v] if isinstance(v, Tensor) else v))


def ggn_operator(loss: Tensor, output: Tensors, plist: Tensors) -> Product:
    """The generalized Gauss-Newton matrix as a function ``v -> J^T H J v``.

    It holds graphs as :func:`hessian_operator` does. A product takes three backward passes, two
    through the model and one through the loss.

    Args:
        loss: A tensor with one element that was computed from ``output``.
        output: The model's output, before the loss.
        plist: The parameters.

    Returns:
        The product, of and to one tensor for each of the parameters; it raises ``ValueError``
        where the vectors do not fit.

    Raises:
        ValueError: As :func:`ggn_vector_product_from_plist`.
        SecondDerivativeError: As :func:`ggn_vector_product_from_plist`.
    """
    outputs, inputs = _differentiable("output", output), _differentiable("plist", plist)
    found = _slopes(loss, outputs)
    if all(slope is None for slope in found):
        raise ValueError("the loss was not computed from this output: its matrix would be zero")
    dummies = [torch.zeros_like(y, requires_grad=True) for y in outputs]
    pulled = gradients(outputs, inputs, dummies)

    def product(v: Sequence[Tensor]) -> tuple[Tensor, ...]:
        pushed = derivative(pulled, dummies, _fitting("v", v, inputs), dummies)
        curved = derivative(found, outputs, pushed, outputs)
        return derivative(outputs, inputs, curved, inputs)

    return product


def _slopes(f: Tensor, inputs: Sequence[Tensor]) -> list[Tensor | None]:
    _differentiable("the function", f)
    if f.numel() != 1:
        raise ValueError(f"the function must have one element, not the shape {tuple(f.shape)}")
    return slopes([f], inputs, [torch.ones_like(f)])


def _given(given: Tensors, inputs: Sequence[Tensor]) -> list[Tensor]:
    found = _fitting("grad_params", given, inputs)
    if not any(g.requires_grad for g in found):
        raise ValueError(
            "grad_params have no graph: compute them with create_graph=True, or leave them out"
        )
    check_twice(found, inputs)
    return found


def _differentiable(name: str, tensors: Tensors) -> list[Tensor]:
    found = [tensors] if isinstance(tensors, Tensor) else list(tensors)
    if not found:
        raise ValueError(f"{name}: no tensor is given, or none that requires a gradient")
    for place, tensor in enumerate(found):
        if not tensor.requires_grad:
            raise ValueError(
                f"{name}[{place}], of shape {tuple(tensor.shape)}, does not require a gradient: it "
                "is frozen, detached or was computed under no_grad; leave it out"
            )
    return found


def _fitting(name: str, vectors: Tensors, like: Sequence[Tensor]) -> list[Tensor]:
    found = [vectors] if isinstance(vectors, Tensor) else list(vectors)
    shapes, expected = [tuple(v.shape) for v in found], [tuple(t.shape) for t in like]
    if shapes != expected:
        raise ValueError(f"{name}: expected tensors of shapes {expected}, got {shapes}")
    return found
