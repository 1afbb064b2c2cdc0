"""What a layer kind has to say: how a cotangent at its output becomes per-sample rows.

Adding a layer kind is adding one file beside this one and naming it in ``__init__``.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar

from torch import Tensor, nn

from curvserve.engine.layers.contractions import at_a_time
from curvserve.engine.rows import Matrices
from curvserve.engine.samples import Layout

__all__ = ["LayerRule"]


class LayerRule(ABC):
    """The contraction of one kind of layer.

    Everywhere, ``a`` is the layer's input and ``s`` the cotangent at its output, both arranged
    with the N samples first: ``[N, *extra, *layer's own axes]``, where the extra axes are those
    that the layer treats alike (tokens, frames), none in the simplest case. Where the layer is
    ``batched`` there is always one: ``[N, K, C, *space]`` with the batch axis taken apart.

    Attributes:
        kinds: The module classes that the rule covers.
        parameters: The names of the parameters that the rule covers.
        batched: Whether the layer gives the axes a meaning by their order, batch and channels
            first; then the samples must lie on the first.
    """

    kinds: ClassVar[tuple[type[nn.Module], ...]]
    parameters: ClassVar[tuple[str, ...]] = ("weight", "bias")
    batched: ClassVar[bool] = False

    @abstractmethod
    def rows(self, module: nn.Module, name: str, a: Tensor, s: Tensor) -> Tensor:
        """The per-sample products ``J_n^T s_n`` with the Jacobian for one parameter.

        Args:
            module: The layer.
            name: Which of its parameters.
            a: Its input, samples first.
            s: The cotangent at its output, samples first.

        Returns:
            A tensor of shape ``[N, *parameter.shape]``.
        """

    def square_sum(self, module: nn.Module, name: str, a: Tensor, s: Tensor) -> Tensor:
        """The sum over samples of the squared rows, ``sum_n (J_n^T s_n)^2``.

        The default forms the rows of a few samples at a time; a rule overrides it where the sum
        can be had without the rows.

        Returns:
            A tensor of the parameter's shape.
        """
        parameter = module.get_parameter(name)
        size = at_a_time(parameter.numel() * s.element_size(), s)
        total = s.new_zeros(parameter.shape)
        for a_chunk, s_chunk in zip(a.split(size), s.split(size), strict=True):
            total += self.rows(module, name, a_chunk, s_chunk).square().sum(0)
        return total

    def square_sums(
        self, module: nn.Module, name: str, a: Tensor, columns: Sequence[Tensor]
    ) -> Tensor:
        """The sum over several columns' cotangents too; a rule may use for all what it makes of a.

        Returns:
            A tensor of the parameter's shape.
        """
        total = self.square_sum(module, name, a, columns[0])
        for s in columns[1:]:
            total = total + self.square_sum(module, name, a, s)
        return total

    def matrices(self, module: nn.Module, name: str, a: Tensor, s: Tensor) -> Matrices | None:
        """The layer as ``y_t = W a_t`` on (patches of) its input.

        Returns:
            Its inputs and cotangents, W being the parameter seen as a matrix ``[O, K]``; None
            where the parameter is no such matrix.
        """
        return None

    def covers(self, module: nn.Module) -> bool:
        """Whether the rule is right for this very module, in its present mode."""
        return True

    def objection(self, module: nn.Module) -> str | None:
        """Why nothing can be computed for this very module, if so."""
        return None

    def input(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
        """What the layer is linear in, with the batch axis of its output; its first argument."""
        first: Tensor = args[0] if args else next(iter(kwargs.values()))
        return first

    def axes(self, module: Any) -> int | None:
        """How many axes the input has together with the batch axis, if it may lack that one."""
        return None

    def admits(self, module: nn.Module, layout: Layout, axes: int) -> bool:
        """Whether the rule is right where the samples lie so in an input of so many axes."""
        return not self.batched or (layout.axis == 0 and axes == (self.axes(module) or axes))

    def arranged(self, tensor: Tensor, layout: Layout, samples: int) -> Tensor:
        """An input or a cotangent as the rule wants it."""
        arranged = layout.samples_first(tensor, samples)
        if not self.batched:
            return arranged
        return arranged.unsqueeze(1) if layout == Layout() else arranged.flatten(1, 2)
