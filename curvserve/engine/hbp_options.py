"""The options of ``HBP``, under the names that BackPACK has for them."""

from curvserve.engine.quantities.hbp import (
    BackpropStrategy,
    Curvature,
    ExpectationApproximation,
    LossHessianStrategy,
)

__all__ = ["BackpropStrategy", "Curvature", "ExpectationApproximation", "LossHessianStrategy"]
