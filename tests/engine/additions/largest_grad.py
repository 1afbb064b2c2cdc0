"""A quantity: all that is needed for every layer kind."""

from torch import Tensor

from curvserve.engine.quantities import GradientQuantity
from curvserve.engine.rows import Rows


class LargestGrad(GradientQuantity):
    """The largest absolute entry of each sample's gradient, [N]."""

    savefield = "largest_grad"
    per_sample = 0

    def reduce(self, rows: Rows) -> Tensor:
        return rows.dense().flatten(1).abs().amax(1)
