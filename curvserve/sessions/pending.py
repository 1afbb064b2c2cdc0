"""The gradient and curvature that wait for `optim_step`."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Any

from curvserve_client.errors import InvalidRequest
from torch import Tensor

from .storage import BatchRef

Quantities = Mapping[str, Mapping[str, Any]]
"""quantity -> parameter name -> tensor, or list of Kronecker factors."""


class Reduction(StrEnum):
    """How the gradients of several batches become one."""

    SUM = "sum"  # as `backward` adds to `p.grad`
    MEAN = "mean"  # weighted by the number of samples, as if all were one batch


@dataclass(frozen=True)
class Pending:
    """What one or more batches gave at one version of the parameters.

    Attributes:
        quantities: of all batches together: gradients as `reduction` says, curvature the mean
            weighted by the number of samples.
        loss: the mean loss, weighted likewise.
        metrics: likewise.
        samples: how many samples there were.
        batches: where each batch lies, for a replay.
        reduction: how gradients join, the same for all batches.
        parts: how many batches there were.
    """

    quantities: Quantities
    loss: Tensor
    metrics: Mapping[str, float]
    samples: int
    batches: tuple[BatchRef, ...] = ()
    reduction: Reduction = Reduction.SUM
    parts: int = 1

    def written(self, batch: BatchRef) -> "Pending":
        """Return the same with the place of its newest batch."""
        return replace(self, batches=(*self.batches, batch))

    def and_then(self, other: "Pending") -> "Pending":
        """Return both together; `other` is of one batch at the same version.

        Raises:
            InvalidRequest: the gradients of the two are to be joined in different ways.
        """
        if other.reduction is not self.reduction:
            message = f"what is pending is a {self.reduction.value} over batches"
            raise InvalidRequest(message, expected=f"reduction={self.reduction.value}")
        samples = self.samples + other.samples
        share = other.samples / samples

        def mean(old: Any, new: Any) -> Any:
            return old + (new - old) * share

        return Pending(
            {
                name: _added(self.quantities[name], new)
                if name == "grad" and self.reduction is Reduction.SUM
                else _averaged(self.quantities[name], new, mean)
                for name, new in other.quantities.items()
            },
            mean(self.loss, other.loss),
            {name: mean(self.metrics[name], value) for name, value in other.metrics.items()},
            samples,
            self.batches,
            self.reduction,
            self.parts + other.parts,
        )


def _added(old: Mapping[str, Tensor], new: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: old[name] + new[name] for name in new}


def _averaged(old: Mapping[str, Any], new: Mapping[str, Any], mean: Any) -> dict[str, Any]:
    return {
        name: [mean(*pair) for pair in zip(old[name], value, strict=True)]
        if isinstance(value, list)
        else mean(old[name], value)
        for name, value in new.items()
    }
