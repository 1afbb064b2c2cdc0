"""A layer kind: all that is needed for every quantity that is made of rows."""

import torch
from torch import Tensor, nn

from curvserve.engine.layers import LayerRule


class Scale(nn.Module):
    """y = w * a."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(width))

    def forward(self, x: Tensor) -> Tensor:
        return self.weight * x


class ScaleRule(LayerRule):
    kinds = (Scale,)
    parameters = ("weight",)

    def rows(self, module: nn.Module, name: str, a: Tensor, s: Tensor) -> Tensor:
        return (a * s).reshape(len(s), -1, s.shape[-1]).sum(1)
