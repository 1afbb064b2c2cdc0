"""Linear maps in anyone's ``forward``, found in the graph by :mod:`curvserve.engine.maps`."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, einsum, nn
from torch.nn import functional as F

from curvserve.engine.layers import contractions
from curvserve.engine.layers.base import LayerRule
from curvserve.engine.layers.linear import positions

__all__ = ["Affine"]


@dataclass(frozen=True)
class Affine(LayerRule):
    """``y_t = W a_t + b`` with some lines of a matrix and of a vector, or with one of both.

    Attributes:
        lines: For the name of each parameter which of its lines ``W`` or ``b`` is.
    """

    kinds = ()

    lines: tuple[tuple[str, range], ...]

    def rows(self, module: nn.Module, name: str, a: Tensor, s: Tensor) -> Tensor:
        """As those of ``nn.Linear``, zero in all other lines."""
        s, parameter = positions(s), module.get_parameter(name)
        rows = s.sum(1) if parameter.dim() == 1 else einsum("nto,nti->noi", s, positions(a))
        return self._placed(rows, 1, name, parameter)

    def square_sum(self, module: nn.Module, name: str, a: Tensor, s: Tensor) -> Tensor:
        """See the base class."""
        return self.square_sums(module, name, a, [s])

    def square_sums(
        self, module: nn.Module, name: str, a: Tensor, columns: Sequence[Tensor]
    ) -> Tensor:
        """See the base class and :mod:`.contractions`."""
        columns, parameter = [positions(s) for s in columns], module.get_parameter(name)
        if parameter.dim() == 1:
            total = torch.stack([s.sum(1).square().sum(0) for s in columns]).sum(0)
        else:
            total = contractions.square_sum(positions(a), columns)
        return self._placed(total, 0, name, parameter)

    def matrices(
        self, module: nn.Module, name: str, a: Tensor, s: Tensor
    ) -> tuple[Tensor, Tensor] | None:
        """The input and the cotangent themselves, of a whole matrix."""
        parameter = module.get_parameter(name)
        whole = parameter.dim() == 2 and len(self.own(name)) == len(parameter)
        return (positions(a), positions(s)) if whole else None

    def own(self, name: str) -> range:
        """The lines of a parameter that rows can be other than zero in."""
        return dict(self.lines)[name]

    def _placed(self, t: Tensor, axis: int, name: str, parameter: Tensor) -> Tensor:
        own = self.own(name)
        if len(own) == len(parameter):
            return t
        behind = [0, 0] * (t.dim() - 1 - axis)
        return F.pad(t, (*behind, own.start, len(parameter) - own.stop))
