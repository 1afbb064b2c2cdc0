"""The check that stands between a computation and a session's state."""

from collections.abc import Mapping, Sequence

from curvserve_client.errors import NonFinite
from torch import Tensor

from .passes import are_finite


def check_finite(tensors: Mapping[str, Tensor | Sequence[Tensor]]) -> None:
    """Refuse tensors that hold a NaN or an infinity.

    Args:
        tensors: name -> tensor or several; all on one device.

    Raises:
        NonFinite: naming the first tensor at fault.
    """
    parts = {name: _floating(tensor) for name, tensor in tensors.items()}
    every = [part for own in parts.values() for part in own]
    if every and not are_finite(every):
        name = next(name for name, own in parts.items() if own and not are_finite(own))
        raise NonFinite(f"{name} is not finite", tensor=name)


def _floating(tensor: Tensor | Sequence[Tensor]) -> list[Tensor]:
    """Return the tensors that could hold what is not finite."""
    if not isinstance(tensor, Tensor):
        return [found for part in tensor for found in _floating(part)]
    return [tensor] if tensor.is_floating_point() else []
