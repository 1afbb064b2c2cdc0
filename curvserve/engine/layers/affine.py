"""Linear maps in anyone's ``forward``, found in the graph by :mod:`curvserve.engine.maps`."""

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor, nn
from torch.nn import functional as F

from curvserve.engine.layers.base import LayerRule
from curvserve.engine.layers.linear import positions, rows_of, square_sums_of
from curvserve.engine.rows import Matrices
from curvserve.engine.samples import Layout

__all__ = ["Affine", "Broadcast", "OfLines"]


@dataclass(frozen=True)
class OfLines(LayerRule):
    """A map by some lines of parameters.

    Attributes:
        lines: For the name of each parameter which of its lines.
    """

    kinds = ()

    lines: tuple[tuple[str, range], ...]

    @abstractmethod
    def own(self, parameter: Tensor, a: Tensor, s: Tensor) -> Tensor:
        """The rows of these lines only, of a parameter of this shape."""

    def rows(self, module: nn.Module, name: str, a: Tensor, s: Tensor) -> Tensor:
        """See the base class; zero in all other lines."""
        return self._placed(self.own(module.get_parameter(name), a, s), 1, module, name)

    def _placed(self, t: Tensor, axis: int, module: nn.Module, name: str) -> Tensor:
        own, count = self.of(name), len(module.get_parameter(name))
        if len(own) == count:
            return t
        return F.pad(t, (*[0, 0] * (t.dim() - 1 - axis), own.start, count - own.stop))

    def of(self, name: str) -> range:
        """The lines of one parameter."""
        return dict(self.lines)[name]


class Affine(OfLines):
    """``y_t = W a_t + b``, or one of both: what ``nn.Linear`` is, with some lines of W and b."""

    def own(self, parameter: Tensor, a: Tensor, s: Tensor) -> Tensor:
        """As those of ``nn.Linear``."""
        return rows_of(None if parameter.dim() == 1 else a, s)

    def square_sum(self, module: nn.Module, name: str, a: Tensor, s: Tensor) -> Tensor:
        """See the base class."""
        return self.square_sums(module, name, a, [s])

    def square_sums(
        self, module: nn.Module, name: str, a: Tensor, columns: Sequence[Tensor]
    ) -> Tensor:
        """By the way that the sizes ask for; see :mod:`.contractions`."""
        alone = module.get_parameter(name).dim() == 1
        total = square_sums_of(None if alone else a, columns)
        return self._placed(total, 0, module, name)

    def matrices(self, module: nn.Module, name: str, a: Tensor, s: Tensor) -> Matrices | None:
        """The input and the cotangent themselves, where all lines are used at once."""
        parameter = module.get_parameter(name)
        whole = parameter.dim() == 2 and len(self.of(name)) == len(parameter)
        return Matrices(positions(a), positions(s)) if whole else None


class Broadcast(OfLines):
    """``y = x + b``, b repeated along axes that it lacks or has size 1 in: summed over these."""

    def own(self, parameter: Tensor, a: Tensor, s: Tensor) -> Tensor:
        """See the base class; ``s`` is ``[N, *]``, the axes of the result but 1 for the samples."""
        shape = (*[1] * (s.dim() - 1 - parameter.dim()), *self._shape(parameter))
        extra = [i for i, size in enumerate(shape, 1) if size == 1 < s.shape[i]]
        summed = s.sum(extra) if extra else s.clone()
        return summed.reshape(len(s), *self._shape(parameter))

    def admits(self, module: nn.Module, layout: Layout, axes: int) -> bool:
        """Only if samples share the parameter."""
        parameter = module.get_parameter(self.lines[0][0])
        axis = layout.axis - (axes - parameter.dim())
        return axis < 0 or self._shape(parameter)[axis] == 1

    def arranged(self, tensor: Tensor, layout: Layout, samples: int) -> Tensor:
        """Samples first, and their axis replaced by one of size 1."""
        arranged = layout.samples_first(tensor, samples)
        if arranged.dim() > tensor.dim():
            arranged = arranged.sum((1, 2))
        return arranged.unsqueeze(layout.axis + 1)

    def _shape(self, parameter: Tensor) -> tuple[int, ...]:
        return len(self.lines[0][1]), *parameter.shape[1:]
