"""The losses whose curvature is known."""

from inspect import Parameter, signature

from torch import nn

from curvserve.engine.losses.base import Draws, LossAt, LossRule, check
from curvserve.engine.losses.bce_with_logits import BCEWithLogits
from curvserve.engine.losses.convex import ByHessian, Convex
from curvserve.engine.losses.cross_entropy import CrossEntropy
from curvserve.engine.losses.gaussian_nll import GaussianNLL
from curvserve.engine.losses.huber import L1, Huber, SmoothL1
from curvserve.engine.losses.likelihood import Likelihood, LikelihoodRule
from curvserve.engine.losses.mse import MSE
from curvserve.engine.losses.nll import NLL
from curvserve.engine.losses.poisson_nll import PoissonNLL

__all__ = [
    "RULES",
    "Convex",
    "Draws",
    "Likelihood",
    "LossAt",
    "LossRule",
    "check",
    "find",
    "is_loss",
    "refusal",
]

_GENERIC = ByHessian()

RULES: dict[type[nn.Module], LossRule] = {
    kind: rule
    for rule in (
        CrossEntropy(),
        MSE(),
        BCEWithLogits(),
        NLL(),
        GaussianNLL(),
        PoissonNLL(),
        Huber(),
        SmoothL1(),
        L1(),
        LikelihoodRule(),
        _GENERIC,
    )
    for kind in rule.kinds
}


def is_loss(module: nn.Module) -> bool:
    """Whether a module is a loss: one of torch's, or a subclass of its base class."""
    return isinstance(module, nn.modules.loss._Loss)


def find(module: nn.Module) -> LossRule | None:
    """The rule for a loss module, or None.

    A subclass has its parent's as long as it keeps ``forward``; what has no rule of its own has
    the generic one, by its Hessian, if it is a function of output and target.
    """
    for kind in type(module).__mro__:
        if kind in RULES:
            if type(module).forward is kind.forward:
                return RULES[kind]
            break
    return None if not is_loss(module) or _reason(module) else _GENERIC


def refusal(module: nn.Module) -> str:
    """Why a loss has no rule, in a sentence for an error."""
    known = ", ".join(sorted(kind.__name__ for kind in RULES))
    reason = _reason(module) or "it is no subclass of torch.nn.modules.loss._Loss"
    return (
        f"{type(module).__name__} has no curvature rule: {reason}; losses that have: {known}, and "
        "any other that is convex in the output (see curvserve.engine.losses.Convex)"
    )


def _reason(module: nn.Module) -> str:
    if isinstance(module, nn.KLDivLoss):
        return (
            "it is linear in its input, so that all curvature would be lost; use CrossEntropyLoss "
            "with probabilities as targets"
        )
    required = [p for p in signature(module.forward).parameters.values() if p.default is p.empty]
    fixed = [p for p in required if p.kind is Parameter.POSITIONAL_OR_KEYWORD]
    return "" if len(fixed) == 2 else "it is not a function of one output and one target"
