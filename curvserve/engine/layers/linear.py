"""``nn.Linear`` with any number of extra axes between the samples and the features."""

from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn

from curvserve.engine import results
from curvserve.engine.layers import contractions
from curvserve.engine.layers.base import LayerRule
from curvserve.engine.rows import Matrices

__all__ = ["Linear", "positions", "rows_of", "square_sums_of"]


class Linear(LayerRule):
    """``y = W a + b``: the row for W is ``sum_t s_t a_t^T``, that for b is ``sum_t s_t``."""

    kinds: ClassVar[tuple[type[nn.Module], ...]] = (nn.Linear,)

    def rows(self, module: nn.Module, name: str, a: Tensor, s: Tensor) -> Tensor:
        """See the base class; ``a`` is ``[N, *, in]``, ``s`` is ``[N, *, out]``."""
        return rows_of(None if name == "bias" else a, s)

    def square_sum(self, module: nn.Module, name: str, a: Tensor, s: Tensor) -> Tensor:
        """See the base class."""
        return self.square_sums(module, name, a, [s])

    def square_sums(
        self, module: nn.Module, name: str, a: Tensor, columns: Sequence[Tensor]
    ) -> Tensor:
        """By the way that the sizes ask for; see :mod:`.contractions`."""
        total = square_sums_of(None if name == "bias" else a, columns)
        return total.reshape(module.get_parameter(name).shape)

    def matrices(self, module: nn.Module, name: str, a: Tensor, s: Tensor) -> Matrices | None:
        """The input and the cotangent themselves, their extra axes folded into one."""
        return None if name == "bias" else Matrices(positions(a), positions(s))


def positions(t: Tensor) -> Tensor:
    """Folds all extra axes into one: ``[N, T, features]``."""
    return t.unsqueeze(1) if t.dim() == 2 else t.flatten(1, -2)


def rows_of(a: Tensor | None, s: Tensor) -> Tensor:
    """The rows for the matrix of ``y_t = W a_t + b``, or without an input those for b."""
    s = positions(s)
    if a is None:
        return s.sum(1)
    a = positions(a)
    found = results.empty((len(s), s.shape[2], a.shape[2]), s)
    return (torch.mul if s.shape[1] == 1 else torch.bmm)(s.mT, a, out=found)


def square_sums_of(a: Tensor | None, columns: Sequence[Tensor]) -> Tensor:
    """The same squared, and summed over samples and columns."""
    columns = [positions(s) for s in columns]
    if a is None:
        rows = [s.squeeze(1) if s.shape[1] == 1 else s.sum(1) for s in columns]
        return contractions.squares(rows).sum(0)
    return contractions.square_sum(positions(a), columns)
