"""The layer that scripts written for BackPACK import from it."""

from torch import nn

__all__ = ["Flatten"]


class Flatten(nn.Flatten):
    """Flattens all axes but the first, as ``torch.nn.Flatten`` does."""
