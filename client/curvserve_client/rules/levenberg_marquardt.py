"""Damping that follows how well the quadratic model foretells the loss."""

import math
from dataclasses import dataclass

import torch

from .base import LossAt, Tensors
from .kl_clip import inner_product

OMEGA = 19 / 20
"""By how much the damping changes for each step between two trials."""


@dataclass(frozen=True)
class Quadratic:
    """What a change c should do to the objective: q(c) = g * c + 1/2 sum (h + damping + l2) c^2.

    Attributes:
        gradients: g, of the objective.
        curvatures: h, of the loss.
        damping: the damping.
        l2: the objective is the loss and l2 / 2 |p|^2.
    """

    gradients: Tensors
    curvatures: Tensors
    damping: float
    l2: float = 0.0

    def predicted(self, changes: Tensors) -> float:
        """Return q(c)."""
        shift = self.damping + self.l2
        bent = {name: (self.curvatures[name] + shift) * c for name, c in changes.items()}
        linear = inner_product(changes, self.gradients)
        return (linear + 0.5 * inner_product(changes, bent)).item()

    def penalty(self, parameters: Tensors, changes: Tensors) -> float:
        """Return by how much l2 / 2 |p|^2 grows."""
        if self.l2 == 0:
            return 0.0
        middles = {name: torch.add(parameters[name], c, alpha=0.5) for name, c in changes.items()}
        return self.l2 * inner_product(changes, middles).item()


@dataclass(frozen=True)
class Verdict:
    """What a trial of a step says.

    Attributes:
        accepted: whether the step is taken.
        factor: by what the damping is multiplied.
        ratio: how the objective's change compares with the predicted one; None where it is not
            finite, or hidden by rounding.
    """

    accepted: bool
    factor: float = 1.0
    ratio: float | None = None


def tried(
    quadratic: Quadratic,
    before: Tensors,
    after: Tensors,
    loss: float,
    loss_at: LossAt,
    interval: int,
) -> Verdict:
    """Compare what a step does to the objective with what the quadratic model foretold.

    rho = (L(p + c) - L(p)) / q(c). Above 3/4 the damping is multiplied by omega^interval, below 1/4
    divided by it, with omega = 19/20. A step that makes the objective grow, or rho not finite, is
    refused and raises the damping. A predicted change below the rounding of the loss tells nothing,
    and changes nothing. Martens, Grosse, "Optimizing neural networks with Kronecker-factored
    approximate curvature", ICML 2015, section 6.5.

    Args:
        quadratic: the model.
        before: the parameters before the step.
        after: the parameters after it.
        loss: the loss of the batch before the step.
        loss_at: gives the loss after it.
        interval: the number of steps between two trials.
    """
    changes = {name: after[name] - before[name] for name in quadratic.gradients}
    predicted = quadratic.predicted(changes)
    change = loss_at(after) - loss + quadratic.penalty(before, changes)
    rounding = abs(loss) * max(torch.finfo(tensor.dtype).eps for tensor in before.values())
    if math.isfinite(change) and abs(predicted) <= rounding:
        return Verdict(accepted=True)
    ratio = change / predicted if predicted else math.nan
    smaller = OMEGA**interval
    if not math.isfinite(ratio):
        return Verdict(accepted=False, factor=1 / smaller)
    factor = smaller if ratio > 3 / 4 else 1.0 if ratio >= 1 / 4 else 1 / smaller
    if change > 0:
        return Verdict(False, 1 / smaller, ratio)
    return Verdict(True, factor, ratio)
