"""Numbers that say how good a model's outputs are, one function each."""

from torch import Tensor
from torch.nn import functional as F


def accuracy(outputs: Tensor, targets: Tensor) -> Tensor:
    """Return the share of samples, or positions in them, whose largest output is the target's.

    Args:
        outputs: logits [N, C], or [N, C, L] of L positions.
        targets: classes [N], or [N, L].

    Returns:
        A 0-dim tensor in 0..1.
    """
    return outputs.argmax(dim=1).eq(targets).float().mean()


def perplexity(outputs: Tensor, targets: Tensor) -> Tensor:
    """Return the exponential of the mean cross entropy: among how many classes a model wavers.

    Args:
        outputs: logits [N, C, L] of L positions.
        targets: classes [N, L].

    Returns:
        A 0-dim tensor, 1 at best.
    """
    return F.cross_entropy(outputs, targets).exp()
