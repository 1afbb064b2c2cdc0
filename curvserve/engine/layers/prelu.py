"""``nn.PReLU``: linear in its slope where the input is negative."""

from typing import Any, ClassVar

from torch import Tensor, nn

from curvserve.engine.layers.base import LayerRule

__all__ = ["PReLU"]


class PReLU(LayerRule):
    """``y = max(x, 0) + w min(x, 0)``: the row is ``sum s min(x, 0)``, by channel or of all."""

    kinds = (nn.PReLU,)
    parameters: ClassVar[tuple[str, ...]] = ("weight",)
    batched: ClassVar[bool] = True

    def rows(self, module: Any, name: str, a: Tensor, s: Tensor) -> Tensor:
        """See the base class; ``a`` and ``s`` are ``[N, K, C, *space]``, or ``[N, K]``."""
        products = s * a.clamp(max=0)
        if module.num_parameters == 1:
            return products.flatten(1).sum(1, keepdim=True)
        return products.reshape(*s.shape[:3], -1).sum((1, 3))
