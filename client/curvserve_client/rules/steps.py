"""The last line of every rule: parameters moved against a direction, out of place."""

import torch
from torch import Tensor

from .base import Tensors

_HALF = (torch.bfloat16, torch.float16)


def stepped(
    parameters: Tensors, directions: Tensors, lr: float, weight_decay: float = 0.0
) -> dict[str, Tensor]:
    """Return p (1 - lr * weight_decay) - lr * d, in the parameters' own dtypes.

    The decay is the decoupled one. Loshchilov, Hutter, "Decoupled weight decay regularization",
    ICLR 2019.

    Args:
        parameters: parameter name -> tensor.
        directions: parameter name -> tensor; a parameter without one stays as it is.
        lr: step size.
        weight_decay: the share of a parameter that is taken away for each unit of lr.
    """
    moved = {
        name: torch.add(decayed(parameters[name], lr, weight_decay), direction, alpha=-lr).to(
            parameters[name].dtype
        )
        for name, direction in directions.items()
    }
    return {**parameters, **moved}


def decayed(parameter: Tensor, lr: float, weight_decay: float) -> Tensor:
    """Return p (1 - lr * weight_decay)."""
    return parameter if weight_decay == 0 else wide(parameter) * (1 - lr * weight_decay)


def penalised(gradients: Tensors, parameters: Tensors, l2: float) -> Tensors:
    """Return g + l2 * p: the gradient of the loss with l2 / 2 |p|^2 added."""
    if l2 == 0:
        return gradients
    return {
        name: torch.add(wide(gradient), parameters[name], alpha=l2)
        for name, gradient in gradients.items()
    }


def wide(tensor: Tensor, copy: bool = False) -> Tensor:
    """Return a tensor of half precision in float32, any other as it is.

    An average that moves by a thousandth at each step stands still in bfloat16.

    Args:
        tensor: a gradient, a curvature, a parameter.
        copy: whether to return a copy in any case: what is given may be written later.
    """
    return tensor.to(torch.float32 if tensor.dtype in _HALF else tensor.dtype, copy=copy)
