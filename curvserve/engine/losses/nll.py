"""``nn.NLLLoss`` on log-probabilities."""

from typing import Any

from torch import Tensor, nn

from curvserve.engine.errors import UnsupportedLossError
from curvserve.engine.losses.cross_entropy import CrossEntropy

__all__ = ["NLL"]


class NLL(CrossEntropy):
    """Negative log-likelihood: the curvature of cross entropy, ``c (diag(p) - p p^T)``, p = exp(f).

    The loss itself is linear in the log-probabilities f: its own Hessian is zero, and all
    curvature would be lost. Where f are log-probabilities, ``diag(p) - p p^T`` gives, through the
    log-softmax before it, what cross entropy gives at the logits: the Fisher matrix of the model.
    """

    kinds = (nn.NLLLoss,)
    is_hessian = False

    def check(self, module: Any, outputs: Tensor, targets: Any) -> None:
        """Refuses an output that is not normalised."""
        super().check(module, outputs, targets)
        excess = float(outputs.logsumexp(1).abs().max())
        if not excess < 1e-3:
            raise UnsupportedLossError(
                "NLLLoss needs log-probabilities, but the exponentials of the output do not add "
                f"up to 1 (the logarithm of their sum is {excess:.3g}): end the model with "
                "nn.LogSoftmax(dim=1), or use CrossEntropyLoss on its raw output"
            )
