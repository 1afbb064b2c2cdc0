"""The passes of a step over all parameters, by kernels of our own wherever these are."""

from collections.abc import Sequence

import torch
from curvserve_client.rules.preconditioned import plain_step
from torch import Tensor

from ..engine import native


def are_finite(tensors: Sequence[Tensor]) -> bool:
    """Tell whether all numbers of tensors are finite.

    Args:
        tensors: at least one, all on one device.
    """
    if native.fit(tensors):
        return native.are_finite(tensors)
    if tensors[0].is_cuda:  # a kernel for all of them; the largest is NaN where any is
        held = [tensor for tensor in tensors if tensor.numel()]
        norms = torch._foreach_norm(held, torch.inf) if held else []
        return not held or bool(torch.isfinite(torch.stack(list(norms))).all())
    # without a tensor of booleans, 14 times as fast on a CPU; both ends are NaN where any number is
    ends = [end for tensor in tensors if tensor.numel() for end in torch.aminmax(tensor)]
    return not ends or bool(torch.isfinite(torch.stack(ends)).all())


def distance(before: Sequence[Tensor], after: Sequence[Tensor]) -> float:
    """Return the Euclidean norm of the change over all tensors, added up in float64.

    Args:
        before: at least one, all on one device.
        after: of the same shapes and types.
    """
    if native.fit(before, after):
        return native.distance(before, after)
    if before[0].is_cuda:  # kernels for all of them, as before
        moved = torch._foreach_sub(list(after), list(before))
        norms = torch._foreach_norm(moved, 2, dtype=torch.float64)
        return float(torch.stack(list(norms)).norm())
    changes = [(y - x).flatten().double() for x, y in zip(before, after, strict=True)]
    # a norm of float32 that adds up in float64 is five times as slow with two threads
    return torch.stack([change.dot(change) for change in changes]).sum().sqrt().item()


def _preconditioned_step(
    parameters: Sequence[Tensor],
    gradients: Sequence[Tensor],
    curvatures: Sequence[Tensor],
    lr: float,
    damping: float,
) -> list[Tensor]:
    if parameters and native.admits(parameters[0]):
        g, h = _as_laid(gradients, parameters), _as_laid(curvatures, parameters)
        if native.fit(parameters, g, h):
            return native.divided(parameters, g, h, factor=-lr, shift=damping)
    return plain_step(parameters, gradients, curvatures, lr, damping)


def _as_laid(tensors: Sequence[Tensor], like: Sequence[Tensor]) -> list[Tensor]:
    """Return tensors that lie in memory as others of their shapes do."""
    return [
        tensor
        if tensor.stride() == other.stride()
        else torch.empty_like(other, dtype=tensor.dtype).copy_(tensor)
        for tensor, other in zip(tensors, like, strict=True)
    ]


_operators = torch.library.Library("curvserve", "FRAGMENT")
_operators.impl("preconditioned_step", _preconditioned_step, "CPU")
