"""What a quantity (an extension, in BackPACK's word) has to say about itself.

Adding a quantity is adding one file beside this one and importing it in ``__init__``. Most are a
short function of the per-sample rows ``J_n^T s_n`` of each parameter: of the gradient's
(:class:`GradientQuantity`) or of those of a factor of the loss Hessian (:class:`ColumnQuantity`).
"""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from operator import index
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from curvserve.engine.losses.base import Draws, LossAt
from curvserve.engine.rows import Rows

if TYPE_CHECKING:
    from curvserve.engine.second_order import Pass

__all__ = ["ColumnQuantity", "Exact", "GradientQuantity", "MonteCarlo", "Quantity", "Subsampled"]


class Quantity(ABC):
    """Something computed for each parameter by a backward pass.

    While it is computed it is a *state* (of any type, a tensor mostly), so that what several
    columns, losses or parts of a batch contribute can be put together before the result is made.

    Attributes:
        savefield: The attribute of each parameter that receives the result.
        per_sample: The axis of the result that runs over the samples of the batch, if there is
            one; without it the states of parts of a batch add up.
        tensor: Whether the result is a single tensor.
        of_one_loss: Whether nothing is defined for a sum of several extended losses.
        divisible: Whether the states of parts of a batch can be put together.
    """

    savefield: str
    per_sample: ClassVar[int | None] = None
    tensor: ClassVar[bool] = True
    of_one_loss: ClassVar[bool] = False
    divisible: ClassVar[bool] = True

    @abstractmethod
    def compute(self, at: "Pass") -> dict[Tensor, Any] | None:
        """The states of all parameters, from one backward pass.

        Args:
            at: The pass.

        Returns:
            A state for each parameter, or None if it is made of the ordinary gradient.
        """

    def combine(self, total: Any, part: Any) -> Any:
        """Adds to a state what one more column, or one more loss of the same batch, contributes."""
        return total.add_(part)

    def merge(self, states: Sequence[Any]) -> Any:
        """Puts the states of consecutive parts of a batch together.

        Raises:
            ValueError: They cannot be: the quantity is that of the whole batch only.
        """
        if not self.divisible:
            raise ValueError(f"{type(self).__name__} needs the whole batch: call it without chunk")
        if self.per_sample is None:
            return torch.stack(list(states)).sum(0)
        return torch.cat(list(states), self.per_sample)

    def finish(self, state: Any) -> Any:
        """Makes the result of a state."""
        return state

    def __repr__(self) -> str:
        """The extension with its options, as one would write it."""
        options = ", ".join(f"{key}={value!r}" for key, value in vars(self).items())
        return f"{type(self).__name__}({options})"


class GradientQuantity(Quantity):
    """A function of the rows of the gradient: row n is the n-th sample's share of it."""

    def compute(self, at: "Pass") -> None:
        """None: the ordinary pass brings the gradient, see ``FirstOrder``."""
        return

    @abstractmethod
    def reduce(self, rows: Rows) -> Any:
        """The state of one parameter."""


class ColumnQuantity(Quantity):
    """A function of the rows of each column of a factor of the loss Hessian."""

    @abstractmethod
    def columns(self, loss: LossAt, draws: Draws) -> Iterable[Tensor]:
        """The cotangents of the model's output, each of its shape.

        Args:
            loss: The loss at the current output and targets.
            draws: Where random numbers come from.
        """

    @abstractmethod
    def reduce(self, rows: Rows) -> Any:
        """The state of one parameter for one column."""

    def compute(self, at: "Pass") -> dict[Tensor, Any]:
        """Reduces the rows column by column."""
        states: dict[Tensor, Any] = {}
        for rows in at.rows(self.columns(at.loss, at.draws)):
            for parameter, own in rows.items():
                part = self.reduce(own)
                known = parameter in states
                states[parameter] = self.combine(states[parameter], part) if known else part
        return states


class Exact(ColumnQuantity):
    """Made of the exact factor of the loss Hessian: one pass for each output unit of a sample."""

    def columns(self, loss: LossAt, draws: Draws) -> Iterable[Tensor]:
        """See the base class."""
        return loss.exact_columns()


class MonteCarlo(ColumnQuantity):
    """Made of a sampled factor of the loss Hessian: one pass for each draw.

    The factor's columns are gradients of the loss at targets drawn from the model's own
    predictive distribution, or another factor with the loss Hessian as its expected square.
    """

    def __init__(self, mc_samples: int = 1) -> None:
        """Chooses the number of draws.

        Args:
            mc_samples: Draws for each sample; the variance of the estimate falls as one over it.

        Raises:
            ValueError: ``mc_samples`` is not a positive integer.
        """
        if not isinstance(mc_samples, int) or isinstance(mc_samples, bool) or mc_samples < 1:
            raise ValueError(f"mc_samples must be a positive integer, got {mc_samples!r}")
        self.mc_samples = mc_samples

    def columns(self, loss: LossAt, draws: Draws) -> Iterable[Tensor]:
        """See the base class."""
        return loss.sampled_columns(self.mc_samples, draws)


class Subsampled(Quantity):
    """A quantity per sample that can be had of some samples only."""

    subsampling: list[int] | None

    def _choose(self, subsampling: Sequence[int] | None) -> None:
        self.subsampling = None if subsampling is None else _indices(subsampling)

    def chosen(self, rows: Rows) -> Tensor:
        """The rows of the chosen samples ``[len(subsampling), *p]``, of all by default.

        Raises:
            IndexError: ``subsampling`` names a sample that the batch does not have.
        """
        if self.subsampling is None:
            return rows.dense()
        if max(self.subsampling) >= rows.samples:
            raise IndexError(
                f"{type(self).__name__}(subsampling={self.subsampling}) on a batch of "
                f"{rows.samples} samples"
            )
        return rows.dense(torch.tensor(self.subsampling))


def _indices(given: Sequence[int]) -> list[int]:
    try:
        found = [index(i) for i in given]
    except TypeError:
        found = []
    if not found or min(found) < 0 or len(set(found)) < len(found):
        raise ValueError(
            f"subsampling must be a non-empty list of different sample indices, got {given}"
        )
    return found
