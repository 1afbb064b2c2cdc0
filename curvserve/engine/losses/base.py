"""What a loss has to say about its curvature.

A loss is a sum of independent *terms* (one for each sample and position of a cross entropy, one
for each element of a squared error), each with a small Hessian with respect to the output that
it reads. A rule gives the square roots of these Hessians, exactly and as Monte-Carlo estimates.
Adding a loss is adding one file beside this one and naming it in ``__init__``.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor, nn
from torch.distributions import Distribution

from curvserve.engine import context
from curvserve.engine.double_backward import derivative, slopes
from curvserve.engine.errors import NonFiniteError, UnsupportedLossError
from curvserve.engine.samples import Layout

__all__ = ["Draws", "LossAt", "LossRule", "check", "value_of"]


class Draws(Protocol):
    """A source of random numbers for the Monte-Carlo factors."""

    def classes(self, probabilities: Tensor, count: int) -> Tensor:
        """Draws ``count`` class indices for each line of ``probabilities`` ``[..., C]``."""

    def normal(self, mean: Tensor, deviation: float, count: int) -> Tensor:
        """Draws ``count`` normal variates around each element of ``mean``."""

    def binary(self, probabilities: Tensor, count: int) -> Tensor:
        """Draws ``count`` zeros and ones for each element of ``probabilities``."""

    def signs(self, columns: int, like: Tensor, count: int) -> Tensor:
        """Draws ``[count, columns, *like.shape]`` signs, +1 or -1, in the type of ``like``."""

    def targets(
        self, distribution: Callable[[Tensor], Distribution], outputs: Tensor, count: int
    ) -> Tensor:
        """Draws ``count`` targets of the distribution that a line of ``outputs`` stands for."""


class LossRule(ABC):
    """The curvature of one loss module.

    Attributes:
        kinds: The loss classes that the rule covers.
        is_hessian: Whether the exact factor is one of the Hessian of the loss itself, rather than
            of a Fisher matrix that stands for it.
    """

    kinds: ClassVar[tuple[type[nn.Module], ...]]
    is_hessian: ClassVar[bool] = True

    @abstractmethod
    def norm(self, module: nn.Module, outputs: Tensor, targets: Any) -> Tensor | float:
        """What the sum over the terms is divided by, 1 for ``reduction='sum'``."""

    def value(self, module: nn.Module, outputs: Tensor, targets: Any) -> Tensor:
        """The loss; with the same bits each time, also on a GPU. The default calls the module."""
        value: Tensor = module(outputs, targets)
        return value

    def of_parts(self, module: nn.Module) -> nn.Module:
        """The loss to compute for a part of a batch, finite for every part.

        Where :meth:`norm` depends on the targets it may be zero for a part, though not for the
        batch: there it is the sum. The default is the loss itself.
        """
        return module

    @abstractmethod
    def exact(self, module: nn.Module, outputs: Tensor, targets: Any) -> Tensor:
        """The square root of every term's Hessian, side by side.

        Returns:
            ``[V, *outputs.shape]`` with V columns for each term, in memory of its own. Columns of
            different terms share an entry of the first axis; :class:`LossAt` takes them apart.
        """

    def thin(self, module: nn.Module, outputs: Tensor, targets: Any) -> Tensor:
        """A square root of every term's Hessian with as few columns as its rank allows.

        For whatever depends on ``S S^T`` alone. The default is :meth:`exact`.
        """
        return self.exact(module, outputs, targets)

    def sampled(
        self, module: nn.Module, outputs: Tensor, targets: Any, count: int, draws: Draws
    ) -> Tensor:
        """Estimates of the same square root, ``[count, *outputs.shape]``, in memory of its own.

        The terms are independent and their draws have mean zero, so they need not be taken apart.
        The default adds up the exact columns with random signs, ``sum_v e_v S_v``, of which
        ``E[s s^T] = S S^T`` for any loss.
        """
        columns = self.exact(module, outputs, targets)
        terms = outputs
        for axis in self.term_axes(outputs):
            terms = terms.narrow(axis, 0, 1)
        return (draws.signs(len(columns), terms, count) * columns).sum(1)

    def shared(
        self, module: nn.Module, outputs: Tensor, targets: Any, draws: Draws
    ) -> tuple[Tensor, Tensor] | None:
        """One estimate as :meth:`sampled` makes it, and where it is the gradient.

        Returns:
            The column ``[*outputs.shape]``, and for each line of the output whether the column
            there is the gradient of the undivided loss; None, and nothing drawn, where the rule
            does not know.
        """
        return None

    def term_axes(self, outputs: Tensor) -> tuple[int, ...]:
        """The axes of the output along which one term reads, none if it reads one element."""
        return ()

    def check(self, module: nn.Module, outputs: Tensor, targets: Any) -> None:  # noqa: B027  # most have none
        """Raises for options that the rule does not cover."""


def check(rule: LossRule, module: nn.Module, outputs: Tensor, targets: Any) -> None:
    """Raises what the rule and the values of the output ask for, before anything is computed.

    Args:
        rule: The rule of the loss.
        module: The loss module.
        outputs: The model's output.
        targets: The targets.

    Raises:
        UnsupportedLossError: The loss is not reduced, or has an option without a rule.
        NonFiniteError: The output holds NaN or infinity.
    """
    reduction = getattr(module, "reduction", None)
    if reduction not in ("mean", "sum"):
        raise UnsupportedLossError(
            f"{type(module).__name__} has reduction={reduction!r}; the extensions need "
            "'mean' or 'sum'"
        )
    rule.check(module, outputs, targets)
    if not context.holds(torch.isfinite(outputs).all()):
        raise NonFiniteError(
            "the model's output holds NaN or infinity: no curvature can be computed there, and "
            "nothing was stored"
        )


def _finite(tensor: Tensor) -> Tensor:
    """Whether all is finite; both extremes are NaN where anything is."""
    return torch.isfinite(torch.stack([tensor.amin(), tensor.amax()])).all()


def value_of(module: nn.Module, outputs: Tensor, targets: Any) -> Tensor:
    """The loss itself. Not by a call: nobody's hooks on the loss are to run for it."""
    rest = targets if isinstance(targets, tuple) else (targets,)
    value: Tensor = module.forward(outputs, *rest)
    return value


@dataclass(frozen=True)
class LossAt:
    """A loss at given outputs and targets, with the curvature that it has there.

    Attributes:
        rule: The rule of the loss.
        module: The loss module.
        outputs: The model's output, detached.
        targets: The other argument of the loss, or a tuple of them where there are more.
        scale: A factor on the loss (that of ``(c * loss).backward()``, or of a part of a batch).
        layout: Where the samples lie in the output.
        samples: Their number N.
    """

    rule: LossRule
    module: nn.Module
    outputs: Tensor
    targets: Any
    scale: float | Tensor
    layout: Layout
    samples: int

    def exact_columns(self, *, thin: bool = False) -> Tensor:
        """A factor S of the loss Hessian with ``sum_v S_v S_v^T = H`` on each sample's block.

        Args:
            thin: Whether any factor will do, so that it may be the one with the fewest columns.

        Returns:
            ``[V, *outputs.shape]``; V counts the columns of one sample, over all its terms.

        Raises:
            UnsupportedLossError: A second derivative is negative or not finite.
        """
        factor = self.rule.thin if thin else self.rule.exact
        columns = self._scaled(factor(self.module, self.outputs, self.targets))
        masks = self._term_masks()
        if len(masks) == 1:
            return columns
        return torch.cat([columns * mask for mask in masks])

    def sampled_columns(self, count: int, draws: Draws) -> Tensor:
        """Random columns whose outer products have the loss Hessian as their expected sum.

        Returns:
            ``[count, *outputs.shape]``, scaled by ``1 / sqrt(count)``.

        Raises:
            UnsupportedLossError: A second derivative is negative or not finite.
        """
        columns = self.rule.sampled(self.module, self.outputs, self.targets, count, draws)
        return self._scaled(columns) * float(count**-0.5)

    def shared_column(self, draws: Draws) -> tuple[Tensor, Tensor] | None:
        """One random column, and by what each line of the gradient becomes that of the column.

        Returns:
            The column, of the shape of the outputs, and a number for each of their lines, zero
            where the gradient is of no use; None, and nothing drawn, where the rule of the loss
            does not know.

        Raises:
            UnsupportedLossError: A second derivative is negative or not finite.
        """
        found = self.rule.shared(self.module, self.outputs, self.targets, draws)
        if found is None:
            return None
        column, same = found
        return self._scaled(column), same.to(column.dtype) / self.factor().sqrt()

    def gradient(self) -> Tensor:
        """The gradient of the (scaled) loss with respect to the outputs, of their shape."""
        with torch.enable_grad():
            outputs = self.outputs.detach().requires_grad_()
            value = value_of(self.module, outputs, self.targets)
            (gradient,) = torch.autograd.grad(value, outputs)
        scaled: Tensor = gradient * self.scale
        return scaled

    def hessian_product(self, vector: Tensor) -> Tensor:
        """The product of the Hessian of the (scaled) loss with a vector, both like the outputs."""
        with torch.enable_grad():
            outputs = self.outputs.detach().requires_grad_()
            value = value_of(self.module, outputs, self.targets)
        gradient = slopes([value], [outputs], [torch.ones_like(value)])
        return derivative(gradient, [outputs], [vector], [outputs])[0] * self.scale

    def hessian(self, order: Tensor) -> Tensor:
        """The Hessian's block of every sample, ``[N, D, D]``.

        Args:
            order: For each sample the places of its D entries in the flattened outputs.
        """
        columns = []
        for places in order.T:
            unit = torch.zeros_like(self.outputs).flatten()
            unit[places] = 1
            columns.append(self.hessian_product(unit.view_as(self.outputs)).flatten()[order])
        return torch.stack(columns, -1)

    def factor(self) -> Tensor:
        """By what the sum of the terms is multiplied: the scale over the norm."""
        norm = self.rule.norm(self.module, self.outputs, self.targets)
        outputs = self.outputs
        return torch.as_tensor(self.scale, dtype=outputs.dtype, device=outputs.device) / norm

    def _scaled(self, columns: Tensor) -> Tensor:
        if not context.holds(_finite(columns)):
            raise UnsupportedLossError(
                f"{type(self.module).__name__} has a second derivative that is negative or not "
                "finite (a negative weight or target?): it has no square root"
            )
        return columns.mul_(self.factor().sqrt().to(columns.dtype))

    def _term_masks(self) -> list[Tensor]:
        """Masks that each keep one term of every sample, together all terms."""
        shape = list(self.outputs.shape)
        for axis in self.rule.term_axes(self.outputs):
            shape[axis] = 1
        numbers = torch.arange(int(torch.Size(shape).numel())).reshape(shape)
        terms = self.layout.samples_first(numbers, self.samples).reshape(self.samples, -1)
        masks = []
        for term in terms.T:
            mask = torch.zeros(numbers.numel(), dtype=self.outputs.dtype)
            mask[term] = 1
            masks.append(mask.reshape(shape).to(self.outputs.device))
        return masks
