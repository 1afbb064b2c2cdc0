"""Any loss that is convex in the output, by the Hessian of each sample's term."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from curvserve.engine.double_backward import derivative, slopes
from curvserve.engine.errors import UnsupportedLossError
from curvserve.engine.losses.base import LossRule, value_of

__all__ = ["ByHessian", "Convex", "block_hessian", "factor"]

# Relative to the largest: what rounding makes of a zero.
_TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-4}


class Convex(nn.modules.loss._Loss):
    """A loss of one's own, convex in the output.

    ``loss(output, target)`` is the mean over the N lines (first axis) of the output, or the sum,
    of ``function(output, target)`` summed over its other axes. Its curvature is found by
    differentiating it twice.

    Example:
        >>> from curvserve.engine.losses import Convex
        >>> loss = Convex(lambda f, y: (f - y).cosh().log())
        >>> loss(torch.zeros(2, 3), torch.ones(2, 3))
        tensor(1.3013)
    """

    def __init__(
        self, function: Callable[[Tensor, Tensor], Tensor], reduction: str = "mean"
    ) -> None:
        """Takes the function.

        Args:
            function: The loss of each line: ``[N, ...]`` of output and target, line n of the
                result of line n of both.
            reduction: "mean" or "sum" over the lines.
        """
        super().__init__(reduction=reduction)
        self.function = function

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        """The loss, a scalar."""
        total = self.function(input, target).sum()
        return total / len(input) if self.reduction == "mean" else total


class ByHessian(LossRule):
    """The Hessian of each line of the output, by double backward, and its eigenvectors."""

    kinds = (Convex,)

    def term_axes(self, outputs: Tensor) -> tuple[int, ...]:
        """All but the first: a term reads a whole line."""
        return tuple(range(1, outputs.dim()))

    def norm(self, module: Any, outputs: Tensor, targets: Any) -> float:
        """The number of lines, of which the mean is taken to be."""
        return 1.0 if module.reduction == "sum" else float(len(outputs))

    def exact(self, module: Any, outputs: Tensor, targets: Any) -> Tensor:
        """Eigenvectors times roots of eigenvalues."""
        norm = self.norm(module, outputs, targets)
        name = type(module).__name__
        blocks = block_hessian(lambda f: norm * value_of(module, f, targets), outputs, name)
        return factor(blocks, outputs, name)


def block_hessian(function: Callable[[Tensor], Tensor], outputs: Tensor, name: str) -> Tensor:
    """The Hessian of a sum over the lines of the output, ``[lines, D, D]``.

    Args:
        function: The sum.
        outputs: The output, ``[lines, ...]`` with D elements a line.
        name: What the loss is called in an error.

    Raises:
        UnsupportedLossError: The lines influence each other.
        SecondDerivativeError: The sum cannot be differentiated twice.
    """
    lines = len(outputs)
    with torch.enable_grad():
        f = outputs.detach().reshape(lines, -1).requires_grad_()
        value = function(f.view_as(outputs))
    gradient = slopes([value], [f], [torch.ones_like(value)])

    def product(vector: Tensor) -> Tensor:
        return derivative(gradient, [f], [vector], [f])[0]

    units = torch.eye(f.shape[1], dtype=f.dtype, device=f.device)
    blocks = torch.stack([product(unit.expand_as(f)) for unit in units], -1)
    generator = torch.Generator().manual_seed(0)
    probe = torch.randn(f.shape, generator=generator, dtype=torch.float64).to(f)
    together = (blocks @ probe.unsqueeze(-1)).squeeze(-1)
    limit = _TOLERANCE.get(f.dtype, 1e-2) * float(blocks.abs().max()) * f.shape[1]
    if not float((product(probe) - together).abs().max()) <= limit:
        raise UnsupportedLossError(
            f"{name} is not a sum over the samples: one sample's output changes the gradient at "
            "another's, so nothing per sample is defined"
        )
    return blocks


def factor(blocks: Tensor, outputs: Tensor, name: str) -> Tensor:
    """Columns S of every line, ``S S^T`` being its block: ``[D, *outputs.shape]``.

    Raises:
        UnsupportedLossError: A block has a negative eigenvalue.
    """
    values, vectors = torch.linalg.eigh((blocks + blocks.mT) / 2)
    least = -_TOLERANCE.get(outputs.dtype, 1e-2) * float(values.abs().max())
    negative = (values < least).any(1)
    if bool(negative.any()):
        line = int(negative.nonzero()[0])
        raise UnsupportedLossError(
            f"{name} is not convex in the output: at sample {line} its Hessian has the eigenvalue "
            f"{float(values[line].min()):.3g}"
        )
    columns = vectors * values.clamp(min=0).sqrt().unsqueeze(1)
    arranged: Tensor = columns.movedim(-1, 0).reshape(-1, *outputs.shape)
    return arranged
