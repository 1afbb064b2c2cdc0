"""The extensions under BackPACK's names: what ``with backpack(...)`` takes."""

from curvserve.engine.quantities import BatchGrad, DiagGGNExact, DiagGGNMC

__all__ = ["BatchGrad", "DiagGGNExact", "DiagGGNMC"]
