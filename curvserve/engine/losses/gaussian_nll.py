"""``nn.GaussianNLLLoss`` with a variance that is given."""

from typing import Any

import torch
from torch import Tensor, nn

from curvserve.engine.losses.elementwise import Elementwise

__all__ = ["GaussianNLL"]


class GaussianNLL(Elementwise):
    """``1/2 ((f - y)^2 / var + log var)``: each element's second derivative is ``1 / var``."""

    kinds = (nn.GaussianNLLLoss,)

    def curvature(self, module: Any, outputs: Tensor, targets: Any) -> Tensor:
        """``1 / var``, the variance bounded below by ``eps`` as in the loss."""
        variance = torch.as_tensor(targets[1], dtype=outputs.dtype, device=outputs.device)
        if variance.dim() and variance.shape == outputs.shape[:-1] != outputs.shape:
            variance = variance.unsqueeze(-1)  # one for all elements of the last axis
        return (1 / variance.clamp(min=module.eps)).expand_as(outputs)
