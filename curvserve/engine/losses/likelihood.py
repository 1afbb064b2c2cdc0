"""Any predictive distribution of ``torch.distributions``."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributions import Distribution

from curvserve.engine.errors import UnsupportedLossError
from curvserve.engine.losses.base import Draws, LossRule
from curvserve.engine.losses.convex import block_hessian, factor

__all__ = ["Likelihood", "LikelihoodRule"]

_TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-4}


class Likelihood(nn.modules.loss._Loss):
    """The negative log-likelihood of targets under a distribution that the output stands for.

    ``loss(output, target)`` is ``-log p(target | output)``, summed over all but the N lines (first
    axis) of the output, and averaged or summed over these. Its curvature is the Fisher information
    of the distribution, ``E_y[grad log p(y) grad log p(y)^T]``: for exponential families in
    their natural parameters the Hessian of the loss.

    Example:
        >>> from torch.distributions import Normal
        >>> from curvserve.engine.losses import Likelihood
        >>> loss = Likelihood(lambda f: Normal(f[:, 0], f[:, 1].exp()))
        >>> loss(torch.zeros(4, 2), torch.zeros(4))
        tensor(0.9189)
    """

    def __init__(
        self, distribution: Callable[[Tensor], Distribution], reduction: str = "mean"
    ) -> None:
        """Takes the distribution.

        Args:
            distribution: Makes of the output a distribution whose first batch axis is that of the
                lines, line n of line n.
            reduction: "mean" or "sum" over the lines.
        """
        super().__init__(reduction=reduction)
        self.distribution = distribution

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        """The loss, a scalar."""
        total: Tensor = -self.distribution(input).log_prob(target).sum()
        return total / len(input) if self.reduction == "mean" else total


class LikelihoodRule(LossRule):
    """The Fisher information of each line's distribution."""

    kinds = (Likelihood,)
    is_hessian = False

    def term_axes(self, outputs: Tensor) -> tuple[int, ...]:
        """All but the first: a term reads a whole line."""
        return tuple(range(1, outputs.dim()))

    def norm(self, module: Any, outputs: Tensor, targets: Any) -> float:
        """The number of lines."""
        return 1.0 if module.reduction == "sum" else float(len(outputs))

    def check(self, module: Any, outputs: Tensor, targets: Any) -> None:
        """Refuses a distribution whose first batch axis is not that of the lines."""
        shape = module.distribution(outputs).batch_shape
        if not shape or shape[0] != len(outputs):
            raise UnsupportedLossError(
                f"the distribution has batch shape {tuple(shape)} for an output of shape "
                f"{tuple(outputs.shape)}: its first batch axis must be that of the output"
            )

    def exact(self, module: Any, outputs: Tensor, targets: Any) -> Tensor:
        """By enumeration of all targets, or the Hessian where it does not depend on the target.

        Raises:
            UnsupportedLossError: Neither can be had.
        """
        distribution = module.distribution(outputs)
        if _enumerable(distribution):
            return _enumerated(module, outputs)
        drawn = distribution.sample()
        name = type(distribution).__name__

        def hessian(y: Tensor) -> Tensor:
            return block_hessian(lambda f: -module.distribution(f).log_prob(y).sum(), outputs, name)

        found = hessian(targets)
        tolerance = _TOLERANCE.get(outputs.dtype, 1e-2)
        constant = float((found - hessian(drawn)).abs().max()) <= tolerance * float(
            found.abs().max()
        )
        if not constant:
            raise UnsupportedLossError(
                f"the exact Fisher information of {name} is not known for this output: its "
                "Hessian depends on the target; use the Monte-Carlo extensions (DiagGGNMC, ...)"
            )
        columns = factor(found, outputs, name)
        _check_explained(_score(module, outputs, drawn), columns, tolerance, name)
        return columns

    def sampled(
        self, module: Any, outputs: Tensor, targets: Any, count: int, draws: Draws
    ) -> Tensor:
        """The gradient of ``-log p(y)`` at drawn y."""
        drawn = draws.targets(module.distribution, outputs, count)
        return torch.stack([_score(module, outputs, y) for y in drawn])


def _score(module: Any, outputs: Tensor, targets: Tensor) -> Tensor:
    """The gradient of ``-log p(y)`` with respect to the output."""
    with torch.enable_grad():
        f = outputs.detach().requires_grad_()
        value = -module.distribution(f).log_prob(targets).sum()
        return torch.autograd.grad(value, f)[0]


def _check_explained(score: Tensor, columns: Tensor, tolerance: float, name: str) -> None:
    """Refuses a Hessian that lacks a direction in which the score moves.

    The Fisher information is the score's covariance, so the score lies in its range; of a density
    with a kink (Laplace's) the Hessian is zero, or misses what the kink contributes.
    """
    s = score.reshape(len(score), -1)
    basis = columns.reshape(len(columns), *s.shape).movedim(0, -1)  # [lines, D, V]
    explained = basis @ torch.linalg.pinv(basis, rtol=tolerance) @ s.unsqueeze(-1)
    rest = (s - explained.squeeze(-1)).norm(dim=1)
    if bool((rest > tolerance**0.5 * s.norm(dim=1)).any()):
        raise UnsupportedLossError(
            f"the Hessian of {name} is not its Fisher information: the density has a kink; use "
            "the Monte-Carlo extensions (DiagGGNMC, ...)"
        )


def _enumerable(distribution: Distribution) -> bool:
    try:
        return bool(distribution.has_enumerate_support)
    except NotImplementedError:
        return False


def _enumerated(module: Any, outputs: Tensor) -> Tensor:
    """One column ``sqrt(p(y)) grad log p(y)`` for each target y of each component of a line."""
    with torch.enable_grad():
        f = outputs.detach().requires_grad_()
        distribution = module.distribution(f)
        logarithms = distribution.log_prob(distribution.enumerate_support())
        logarithms = logarithms.reshape(*logarithms.shape[:2], -1)  # [targets, lines, components]
        slopes = [
            torch.autograd.grad(logarithms[y, :, c].sum(), f, retain_graph=True)[0]
            for y in range(logarithms.shape[0])
            for c in range(logarithms.shape[2])
        ]
    roots = logarithms.detach().exp().sqrt().movedim(1, -1).flatten(0, 1)
    shape = (*roots.shape, *[1] * (f.dim() - 1))
    columns: Tensor = torch.stack(slopes) * roots.reshape(shape)
    return columns
