"""The quantities, and the registry of their names."""

from curvserve.engine.quantities.base import Quantity
from curvserve.engine.quantities.diagonal import DiagGGNExact, DiagGGNMC
from curvserve.engine.quantities.per_sample import BatchGrad

__all__ = ["QUANTITIES", "BatchGrad", "DiagGGNExact", "DiagGGNMC", "Quantity"]

QUANTITIES: dict[str, type[Quantity]] = {
    quantity.savefield: quantity for quantity in (BatchGrad, DiagGGNMC, DiagGGNExact)
}
