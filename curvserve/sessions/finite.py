"""The check that stands between a computation and a session's state."""

from collections.abc import Mapping, Sequence

import torch
from curvserve_client.errors import NonFinite
from torch import Tensor


def check_finite(tensors: Mapping[str, Tensor | Sequence[Tensor]]) -> None:
    """Refuse tensors that hold a NaN or an infinity.

    Args:
        tensors: name -> tensor or several; at least one, all on one device.

    Raises:
        NonFinite: naming the first tensor at fault.
    """
    finite = torch.stack([_is_finite(tensor) for tensor in tensors.values()])
    if not bool(finite.all()):  # the one place where a GPU is waited for
        name = next(name for name, good in zip(tensors, finite.tolist(), strict=True) if not good)
        raise NonFinite(f"{name} is not finite", tensor=name)


def _is_finite(tensor: Tensor | Sequence[Tensor]) -> Tensor:
    if not isinstance(tensor, Tensor):
        return torch.stack([_is_finite(part) for part in tensor]).all()
    if not tensor.numel() or not tensor.is_floating_point():
        return torch.ones((), dtype=torch.bool, device=tensor.device)
    # both are NaN where any is; a pass without a tensor of booleans, 14 times as fast on a CPU
    return torch.isfinite(torch.stack(torch.aminmax(tensor))).all()
