"""The preconditioned step, for all parameters at once: an operator of torch.

Where there is a faster kernel for a device than several of torch's in a row, its owner registers it
with the dispatcher, and every rule that calls `preconditioned_step` has it. It has to have the bits
of `plain_step`: a step is the same wherever it is taken.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

_operators = torch.library.Library("curvserve", "FRAGMENT")
_operators.define(
    "preconditioned_step(Tensor[] parameters, Tensor[] gradients, Tensor[] curvatures,"
    " float lr, float damping) -> Tensor[]"
)


def preconditioned_step(
    parameters: Sequence[Tensor],
    gradients: Sequence[Tensor],
    curvatures: Sequence[Tensor],
    lr: float,
    damping: float,
) -> list[Tensor]:
    """Return p - lr * g / (h + damping) of each parameter, a new tensor.

    Args:
        parameters: p.
        gradients: g, of the parameters' shapes.
        curvatures: h, likewise.
        lr: step size.
        damping: what is added to the curvature.
    """
    moved: list[Tensor] = torch.ops.curvserve.preconditioned_step(
        list(parameters), list(gradients), list(curvatures), lr, damping
    )
    return moved


def plain_step(
    parameters: Sequence[Tensor],
    gradients: Sequence[Tensor],
    curvatures: Sequence[Tensor],
    lr: float,
    damping: float,
) -> list[Tensor]:
    """Do what `preconditioned_step` does by torch's own operations, on any device.

    For lists of tensors: a GPU launches a kernel for all of them, a CPU goes through them.
    """
    if not parameters:
        return []
    damped = torch._foreach_add(list(curvatures), damping)
    moved: list[Tensor] = list(
        torch._foreach_addcdiv(list(parameters), list(gradients), damped, value=-lr)
    )
    return moved


_operators.impl("preconditioned_step", plain_step, "CompositeExplicitAutograd")
