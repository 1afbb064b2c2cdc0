"""``nn.BCEWithLogitsLoss`` of any shape: multi-label, soft targets, weights."""

from typing import Any

from torch import Tensor, nn

from curvserve.engine.losses.base import Draws
from curvserve.engine.losses.elementwise import Elementwise

__all__ = ["BCEWithLogits"]


class BCEWithLogits(Elementwise):
    """Binary cross entropy: each element's second derivative is ``c p (1 - p)``.

    p is the sigmoid of the output, and ``c = weight (pos_weight y + 1 - y)`` the total weight of
    the target y, 1 in the plain case.
    """

    kinds = (nn.BCEWithLogitsLoss,)

    def curvature(self, module: Any, outputs: Tensor, targets: Any) -> Tensor:
        """``c p (1 - p)``."""
        probabilities = outputs.sigmoid()
        return _coefficients(module, targets) * probabilities * (1 - probabilities)

    def sampled(
        self, module: Any, outputs: Tensor, targets: Any, count: int, draws: Draws
    ) -> Tensor:
        """``sqrt(c) (p - y)`` with y drawn from p."""
        probabilities = outputs.sigmoid()
        drawn = draws.binary(probabilities, count)
        return (probabilities - drawn) * _coefficients(module, targets).sqrt()


def _coefficients(module: Any, targets: Tensor) -> Tensor:
    positive = 1 if module.pos_weight is None else module.pos_weight
    own = positive * targets + 1 - targets
    return own if module.weight is None else module.weight * own
