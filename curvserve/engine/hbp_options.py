"""The options of ``HBP``, under the names that BackPACK has for them."""

__all__ = ["BackpropStrategy", "Curvature", "ExpectationApproximation", "LossHessianStrategy"]


class Curvature:
    """Which curvature HBP carries back: what is done to the modules' second derivatives."""

    HESSIAN = "hessian"
    GGN = "ggn"
    PCH_ABS = "pch-abs"
    PCH_CLIP = "pch-clip"
    CHOICES = (HESSIAN, GGN, PCH_CLIP, PCH_ABS)


class LossHessianStrategy:
    """How HBP represents the loss Hessian."""

    EXACT = "exact"
    SAMPLING = "sampling"
    SUM = "sum"
    CHOICES = (EXACT, SAMPLING, SUM)


class BackpropStrategy:
    """What HBP carries back: a factor for each sample, or a matrix averaged over the batch."""

    SQRT = "sqrt"
    BATCH_AVERAGE = "average"
    CHOICES = (BATCH_AVERAGE, SQRT)


class ExpectationApproximation:
    """How HBP averages over the batch at a parameter: inputs' outer products, or mean inputs."""

    BOTEV_MARTENS = "E[J^T E(H) J]"
    CHEN = "E(J^T) E(H) E(J)"
    CHOICES = (BOTEV_MARTENS, CHEN)
