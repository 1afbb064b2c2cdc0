"""The extensions under BackPACK's names: what ``with backpack(...)`` takes."""

from curvserve.engine.quantities import (
    BatchDiagGGNExact,
    BatchDiagGGNMC,
    BatchGrad,
    BatchL2Grad,
    DiagEmpiricalFisher,
    DiagGGNExact,
    DiagGGNMC,
    SqrtGGNExact,
    SqrtGGNMC,
    SumGradSquared,
    Variance,
)

__all__ = [
    "BatchDiagGGNExact",
    "BatchDiagGGNMC",
    "BatchGrad",
    "BatchL2Grad",
    "DiagEmpiricalFisher",
    "DiagGGNExact",
    "DiagGGNMC",
    "SqrtGGNExact",
    "SqrtGGNMC",
    "SumGradSquared",
    "Variance",
]
