"""Which quantities a model has: found by computing them, of two made-up samples.

A quantity costs up to hundreds of passes, so of each family one is computed that is cheap and
fails where the others do: by the way through the model, by the loss, or by a second derivative.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..engine import evaluate
from ..engine.quantities import (
    QUANTITIES,
    DiagEmpiricalFisher,
    DiagHessian,
    GradientQuantity,
    HutchinsonDiagonal,
    Quantity,
)
from ..engine.quantities.base import ColumnQuantity
from .check import batch
from .dry_run import in_a_line
from .model import Model

GRADIENT = "grad"

SERVED = (GRADIENT, *(name for name, kind in QUANTITIES.items() if kind.tensor))
"""What clients can ask for: everything that is one tensor a parameter."""

_FAMILIES: tuple[tuple[type[Quantity], str], ...] = (
    (GradientQuantity, "batch_l2"),
    (DiagEmpiricalFisher, "diag_empirical_fisher"),
    (ColumnQuantity, "diag_ggn_mc"),
    (HutchinsonDiagonal, "hutchinson_trace"),
    (DiagHessian, "hutchinson_trace"),
)
"""A family and the member that speaks for it; the first that a quantity belongs to."""


@dataclass(frozen=True)
class Support:
    """What was found of a model.

    Attributes:
        quantities: those that can be served.
        refused: quantity -> why it cannot, in a line.
    """

    quantities: tuple[str, ...]
    refused: Mapping[str, str]

    def __str__(self) -> str:
        """Return what is refused, each reason once."""
        reasons: dict[str, list[str]] = {}
        for name, reason in self.refused.items():
            reasons.setdefault(reason, []).append(name)
        return "; ".join(f"no {', '.join(names)}: {why}" for why, names in reasons.items())


def find_support(
    model: Model, network: nn.Module, loss: nn.Module, device: torch.device
) -> Support:
    """Return which quantities a model has.

    What the network draws is drawn from torch's global generators.

    Args:
        model: the recipe.
        network: the network, in the mode in which it is trained.
        loss: its loss.
        device: where they are.
    """
    trial = _Trial(network, loss, *batch(model, device))
    refused = _refused(trial) if trial.reason(list(dict.fromkeys(_SPEAKERS.values()))) else {}
    return Support(tuple(name for name in SERVED if name not in refused), refused)


@dataclass(frozen=True)
class _Trial:
    network: nn.Module
    loss: nn.Module
    inputs: Tensor
    targets: Tensor

    def reason(self, quantities: Sequence[str]) -> str:
        """Return why quantities cannot be computed, nothing if they can."""
        try:
            evaluate(self.network, self.loss, self.inputs, self.targets, quantities, seed=0)
        except Exception as error:  # the engine's, or whatever torch and the model raise
            return in_a_line(error)
        return ""


def _refused(trial: _Trial) -> dict[str, str]:
    reasons = {speaker: trial.reason([speaker]) for speaker in set(_SPEAKERS.values())}
    return {name: reason for name in SERVED if (reason := reasons[_SPEAKERS[name]])}


def _speaker(quantity: str) -> str:
    kind = QUANTITIES.get(quantity)
    families = (speaker for base, speaker in _FAMILIES if kind and issubclass(kind, base))
    return next(families, quantity)


_SPEAKERS = {quantity: _speaker(quantity) for quantity in SERVED}
"""Every quantity -> the one that is computed in its place."""
