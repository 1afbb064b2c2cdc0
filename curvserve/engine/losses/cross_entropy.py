"""``nn.CrossEntropyLoss`` with every option and any number of extra axes."""

from copy import copy
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from curvserve.engine.errors import UnsupportedLossError
from curvserve.engine.losses.base import Draws, LossRule

__all__ = ["CrossEntropy"]


class CrossEntropy(LossRule):
    """Softmax cross entropy: each term's Hessian is ``c (diag(p) - p p^T)``, p the probabilities.

    The coefficient c is the total weight of the term's target: 1 in the plain case, the weight
    of the class, 0 where the class is ``ignore_index``, a mixture with label smoothing or
    probabilities as targets.
    """

    kinds: ClassVar[tuple[type[nn.Module], ...]] = (nn.CrossEntropyLoss,)

    def term_axes(self, outputs: Tensor) -> tuple[int, ...]:
        """The class axis."""
        return (1,)

    def check(self, module: Any, outputs: Tensor, targets: Tensor) -> None:
        """Refuses a single sample without a batch axis."""
        if outputs.dim() < 2:
            raise UnsupportedLossError(
                f"{type(module).__name__} needs an output [N, C, ...], got "
                f"{tuple(outputs.shape)}: give a single sample a batch axis of size 1"
            )

    def value(self, module: Any, outputs: Tensor, targets: Tensor) -> Tensor:
        """Line by line on a GPU: of a map torch adds up the terms there as they come."""
        if outputs.is_cuda and outputs.dim() > 2 and not targets.is_floating_point():
            return super().value(module, outputs.movedim(1, -1).flatten(0, -2), targets.flatten())
        return super().value(module, outputs, targets)

    def norm(self, module: Any, outputs: Tensor, targets: Tensor) -> Tensor | float:
        """The number of positions, or for class targets the sum of their classes' weights."""
        if module.reduction == "sum":
            return 1.0
        if targets.is_floating_point():
            return float(outputs.numel() // outputs.shape[1])
        return _class_weights(module, outputs, targets).sum()

    def of_parts(self, module: Any) -> Any:
        """The sum over the terms: all classes of a part may be ignored, or of weight zero."""
        if module.reduction != "mean":
            return module
        summed = copy(module)
        summed.reduction = "sum"
        return summed

    def exact(self, module: Any, outputs: Tensor, targets: Tensor) -> Tensor:
        """Column v is ``sqrt(c p_v) (e_v - p)``."""
        probabilities = outputs.softmax(1).movedim(1, -1)
        root = probabilities.sqrt()
        columns = torch.diag_embed(root) - probabilities.unsqueeze(-1) * root.unsqueeze(-2)
        columns = columns.movedim(-1, 0).movedim(-1, 2)
        return columns * _coefficients(module, outputs, targets).sqrt()

    def thin(self, module: Any, outputs: Tensor, targets: Tensor) -> Tensor:
        """The Cholesky factor, of C - 1 columns, in closed form.

        With ``q_v = sum_(i > v) p_i``: ``sqrt(p_v q_v / q_(v-1))`` on the diagonal, and below it
        ``-p_i / q_v`` times that. (Tanabe, Sagae, An exact Cholesky decomposition and the
        generalized inverse of the variance-covariance matrix of the multinomial distribution,
        Journal of the Royal Statistical Society B, 1992.)
        """
        if outputs.shape[1] == 1:
            return self.exact(module, outputs, targets)
        probabilities = outputs.softmax(1).movedim(1, -1)
        sums = probabilities.flip(-1).cumsum(-1).flip(-1)
        divisors = sums.where(sums > 0, 1)  # of nothing but zeros: any will do
        diagonal = probabilities[..., :-1] * (sums[..., 1:] / divisors[..., :-1])
        diagonal = (diagonal * _coefficients(module, outputs, targets).movedim(1, -1)).sqrt()
        # in place: with many classes it is a large tensor, and fresh memory costs most
        columns = probabilities.unsqueeze(-2) / divisors[..., 1:].neg().unsqueeze(-1)
        columns.triu_(1).diagonal(dim1=-2, dim2=-1).fill_(1)
        return columns.mul_(diagonal.unsqueeze(-1)).movedim(-2, 0).movedim(-1, 2)

    def sampled(
        self, module: Any, outputs: Tensor, targets: Tensor, count: int, draws: Draws
    ) -> Tensor:
        """``sqrt(c) (p - e_y)`` with y drawn from p."""
        return _sampled(module, outputs, targets, count, draws)[0]

    def shared(
        self, module: Any, outputs: Tensor, targets: Tensor, draws: Draws
    ) -> tuple[Tensor, Tensor] | None:
        """The gradient is ``p - e_y`` with y the label: the same where that is drawn."""
        if module.weight is not None or module.label_smoothing or targets.is_floating_point():
            return None
        if outputs.dim() > 2:
            return None
        columns, drawn = _sampled(module, outputs, targets, 1, draws)
        return columns[0], drawn[0] == targets


def _sampled(
    module: Any, outputs: Tensor, targets: Tensor, count: int, draws: Draws
) -> tuple[Tensor, Tensor]:
    """The columns, and the classes drawn ``[count, N, ...]``."""
    probabilities = outputs.softmax(1).movedim(1, -1)
    drawn = draws.classes(probabilities, count)
    places = drawn.unsqueeze(-1)
    all_draws = probabilities.expand(count, *probabilities.shape)
    taken = outputs.new_full((), -1).expand_as(places)
    columns = all_draws.scatter_add(-1, places, taken).movedim(-1, 2)
    return columns * _coefficients(module, outputs, targets).sqrt(), drawn


def _class_weights(module: Any, outputs: Tensor, targets: Tensor) -> Tensor:
    """The weight of each position's class, 0 where the position is ignored."""
    counted = targets != module.ignore_index
    if module.weight is None:
        plain: Tensor = counted.to(outputs.dtype)
        return plain
    weighted: Tensor = module.weight[targets.where(counted, 0)] * counted
    return weighted


def _coefficients(module: Any, outputs: Tensor, targets: Tensor) -> Tensor:
    """The total weight of each term's target, with the class axis kept at size 1."""
    classes, smoothing = outputs.shape[1], getattr(module, "label_smoothing", 0.0)
    weight = outputs.new_ones(classes) if module.weight is None else module.weight
    if targets.is_floating_point():
        mixed = targets * (1 - smoothing) + smoothing / classes
        return (mixed.movedim(1, -1) @ weight).unsqueeze(1)
    counted = (targets != module.ignore_index).to(outputs.dtype)
    own = (1 - smoothing) * _class_weights(module, outputs, targets)
    total: Tensor = own + smoothing * weight.mean() * counted
    return total.unsqueeze(1)
