"""What a quantity (an extension, in BackPACK's word) has to say about itself.

Adding a quantity is adding one file beside this one and naming it in ``__init__``.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor

from curvserve.engine.losses.base import Draws, LossAt
from curvserve.engine.rows import Rows

__all__ = ["Quantity"]


class Quantity(ABC):
    """Something made, for each parameter, of the per-sample rows of one or more cotangents.

    Attributes:
        savefield: The attribute of each parameter that receives the result.
        additive: Whether results of parts of a batch add up to that of the batch; otherwise
            they are per sample and are concatenated.
    """

    savefield: ClassVar[str]
    additive: ClassVar[bool] = True

    def columns(self, loss: LossAt, draws: Draws) -> Tensor | None:
        """The cotangents at the model's output that the quantity is made of.

        Args:
            loss: The loss at the current output and targets.
            draws: Where random numbers come from.

        Returns:
            A tensor ``[V, *output.shape]``, or None for the ordinary gradient of the loss.
        """
        return None

    @abstractmethod
    def reduce(self, rows: Rows) -> Tensor:
        """What one cotangent contributes for one parameter."""

    def combine(self, total: Tensor | None, part: Tensor) -> Tensor:
        """Adds the contribution of one more cotangent."""
        return part if total is None else total.add_(part)

    def merge(self, parts: Sequence[Tensor]) -> Tensor:
        """Puts the results of consecutive parts of a batch together."""
        return torch.stack(list(parts)).sum(0) if self.additive else torch.cat(list(parts))

    def __repr__(self) -> str:
        """The extension with its options, as one would write it."""
        options = ", ".join(f"{key}={value!r}" for key, value in vars(self).items())
        return f"{type(self).__name__}({options})"
