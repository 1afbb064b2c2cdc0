"""The gradient and curvature that wait for `optim_step`."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from .storage import BatchRef

Quantities = Mapping[str, Mapping[str, Any]]
"""quantity -> parameter name -> tensor, or list of Kronecker factors."""


@dataclass(frozen=True)
class Pending:
    """What one or more batches gave at one version of the parameters.

    Attributes:
        quantities: of all batches together: gradients add, as `backward` adds to `p.grad`;
            curvature is the mean, weighted by the number of samples.
        loss: the mean loss, weighted likewise.
        metrics: likewise.
        samples: how many samples there were.
        batches: where each batch lies, for a replay.
    """

    quantities: Quantities
    loss: Tensor
    metrics: Mapping[str, float]
    samples: int
    batches: tuple[BatchRef, ...] = ()

    def written(self, batch: BatchRef) -> "Pending":
        """Return the same with the place of its newest batch."""
        return replace(self, batches=(*self.batches, batch))

    def and_then(self, other: "Pending") -> "Pending":
        """Return both together; `other` is of one batch at the same version."""
        samples = self.samples + other.samples
        share = other.samples / samples

        def mean(old: Any, new: Any) -> Any:
            return old + (new - old) * share

        return Pending(
            {name: _joined(name, self.quantities[name], new, mean)
             for name, new in other.quantities.items()},
            mean(self.loss, other.loss),
            {name: mean(self.metrics[name], value) for name, value in other.metrics.items()},
            samples,
            self.batches,
        )  # fmt: skip


def _joined(
    quantity: str, old: Mapping[str, Any], new: Mapping[str, Any], mean: Any
) -> dict[str, Any]:
    if quantity == "grad":
        return {name: old[name] + new[name] for name in new}
    return {
        name: [mean(*pair) for pair in zip(old[name], value, strict=True)]
        if isinstance(value, list)
        else mean(old[name], value)
        for name, value in new.items()
    }
