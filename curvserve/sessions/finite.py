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
    ends = {name: _ends(tensor) for name, tensor in tensors.items()}
    every = [end for own in ends.values() for end in own]
    if every and not bool(torch.isfinite(torch.stack(every)).all()):  # where a GPU is waited for
        name = next(name for name, own in ends.items() if not all(map(torch.isfinite, own)))
        raise NonFinite(f"{name} is not finite", tensor=name)


def _ends(tensor: Tensor | Sequence[Tensor]) -> list[Tensor]:
    """Return the least and the largest number; both are NaN where any is."""
    if not isinstance(tensor, Tensor):
        return [end for part in tensor for end in _ends(part)]
    if not tensor.numel() or not tensor.is_floating_point():
        return []
    # a pass without a tensor of booleans, 14 times as fast on a CPU
    return list(torch.aminmax(tensor))
