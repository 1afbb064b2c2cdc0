"""Numbers that say how good a model's outputs are, one function each."""

from torch import Tensor


def accuracy(outputs: Tensor, targets: Tensor) -> Tensor:
    """Return the share of samples whose largest output is the target's class.

    Args:
        outputs: logits [N, C].
        targets: classes [N].

    Returns:
        A 0-dim tensor in 0..1.
    """
    return outputs.argmax(dim=1).eq(targets).float().mean()
