"""What can go wrong in the engine: one class for each kind of refusal.

The engine never returns a wrong number or a partly filled set: what it cannot compute, it
refuses with one of these, and the message names the module, the parameter or the extension.
"""

__all__ = [
    "EngineError",
    "IncompleteBackwardError",
    "MixedSamplesError",
    "NonFiniteError",
    "NotAChainError",
    "NotRecordedError",
    "ReplayError",
    "ScaledLossWarning",
    "SecondDerivativeError",
    "SeveralLossesError",
    "UncoveredParameterError",
    "UnsupportedLossError",
]


class EngineError(RuntimeError):
    """Base of all errors that the engine raises about a model, a loss or a pass."""


class UnsupportedLossError(EngineError):
    """The loss, or an option of it, has no curvature rule."""


class NotAChainError(EngineError):
    """The curvature is defined on a chain of modules, and the model is none."""


class NotRecordedError(EngineError):
    """The graph of the loss holds no call of an extended module."""


class UncoveredParameterError(EngineError):
    """A parameter is used where per-sample quantities cannot be had."""


class MixedSamplesError(EngineError):
    """The samples of the batch influence each other, so that "per sample" has no meaning."""


class ReplayError(EngineError):
    """A module that is replayed sample by sample gave another output than in its forward pass."""


class NonFiniteError(EngineError):
    """A number that something is made of is NaN or infinite: a model's output, a product."""


class SecondDerivativeError(EngineError):
    """An operation that has to be differentiated twice has no second derivative, or a wrong one."""


class IncompleteBackwardError(EngineError):
    """The backward pass ended before it reached every layer, as ``backward(inputs=...)`` does."""


class SeveralLossesError(EngineError):
    """Several extended losses were added up, and the quantity is not defined for their sum."""


class ScaledLossWarning(UserWarning):
    """The loss was multiplied before ``backward``; the curvature is that of the product."""
