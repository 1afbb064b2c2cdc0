"""``nn.PoissonNLLLoss``, of the rate or of its logarithm."""

from typing import Any

from torch import Tensor, nn

from curvserve.engine.losses.elementwise import Elementwise

__all__ = ["PoissonNLL"]


class PoissonNLL(Elementwise):
    """``exp(f) - y f`` with second derivative ``exp(f)``, or ``f - y log f`` with ``y / f^2``."""

    kinds = (nn.PoissonNLLLoss,)

    def curvature(self, module: Any, outputs: Tensor, targets: Any) -> Tensor:
        """The second derivative with respect to the rate or its logarithm."""
        if module.log_input:
            return outputs.exp()
        rate: Tensor = targets / (outputs + module.eps).square()
        return rate
