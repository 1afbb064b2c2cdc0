"""A bound on how far one step moves the model's predictions."""

import torch
from torch import Tensor

from .base import Tensors
from .steps import wide


def kl_scale(directions: Tensors, gradients: Tensors, lr: float, kl_clip: float) -> Tensor:
    """Return nu = min(1, sqrt(kl_clip / |lr^2 sum d * g|)), 0-dim, float64.

    With d = F^-1 g, lr^2 sum d * g is the squared length of the step in the metric F: twice the
    Kullback-Leibler divergence between the predictions before and after, to second order. Ba,
    Grosse, Martens, "Distributed second-order optimization using Kronecker-factored
    approximations", ICLR 2017.

    Args:
        directions: d, parameter name -> tensor.
        gradients: g, what the directions were made of.
        lr: step size.
        kl_clip: the bound.
    """
    length = lr**2 * inner_product(directions, gradients)
    return torch.sqrt(kl_clip / length.abs()).clamp(max=1.0)


def inner_product(left: Tensors, right: Tensors) -> Tensor:
    """Return the sum of the products over all parameters of `left`, 0-dim, float64."""
    products = [(wide(left[name]) * right[name]).sum(dtype=torch.float64) for name in left]
    total: Tensor = torch.stack(products).sum()
    return total
