"""The quantities, and the registry of their names."""

from curvserve.engine.quantities.base import (
    ColumnQuantity,
    GradientQuantity,
    MonteCarlo,
    Quantity,
    Subsampled,
)
from curvserve.engine.quantities.diagonal import (
    BatchDiagGGNExact,
    BatchDiagGGNMC,
    DiagEmpiricalFisher,
    DiagGGNExact,
    DiagGGNMC,
)
from curvserve.engine.quantities.hbp import HBP, KFRA
from curvserve.engine.quantities.hessian import BatchDiagHessian, DiagHessian
from curvserve.engine.quantities.hutchinson import HutchinsonDiagonal, HutchinsonTrace
from curvserve.engine.quantities.kronecker import EKFAC, KFAC, KFLR
from curvserve.engine.quantities.matrix_products import GGNMP, HMP
from curvserve.engine.quantities.pchmp import PCHMP
from curvserve.engine.quantities.per_sample import (
    BatchGrad,
    BatchL2Grad,
    SumGradSquared,
    Variance,
)
from curvserve.engine.quantities.sqrt_ggn import SqrtGGNExact, SqrtGGNMC

EXTENSIONS: tuple[type[Quantity], ...] = (
    BatchGrad,
    BatchL2Grad,
    SumGradSquared,
    Variance,
    DiagGGNExact,
    DiagGGNMC,
    BatchDiagGGNExact,
    BatchDiagGGNMC,
    SqrtGGNExact,
    SqrtGGNMC,
    DiagEmpiricalFisher,
    DiagHessian,
    BatchDiagHessian,
    HutchinsonDiagonal,
    HutchinsonTrace,
    KFAC,
    KFLR,
    EKFAC,
    GGNMP,
    HMP,
    PCHMP,
    KFRA,
    HBP,
)

# By name: those that can be made without options, as HBP cannot.
QUANTITIES: dict[str, type[Quantity]] = {
    kind().savefield: kind for kind in EXTENSIONS if kind is not HBP
}

__all__ = [
    "HBP",
    "KFRA",
    "PCHMP",
    "KFAC",
    "KFLR",
    "EKFAC",
    "DiagHessian",
    "BatchDiagHessian",
    "GGNMP",
    "HMP",
    "HutchinsonDiagonal",
    "HutchinsonTrace",
    "EXTENSIONS",
    "QUANTITIES",
    "BatchDiagGGNExact",
    "BatchDiagGGNMC",
    "BatchGrad",
    "BatchL2Grad",
    "ColumnQuantity",
    "DiagEmpiricalFisher",
    "DiagGGNExact",
    "DiagGGNMC",
    "GradientQuantity",
    "MonteCarlo",
    "Quantity",
    "SqrtGGNExact",
    "SqrtGGNMC",
    "Subsampled",
    "SumGradSquared",
    "Variance",
]
