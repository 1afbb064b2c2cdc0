"""What a call on a session gives back."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

from torch import Tensor

from ..display import html_table
from ..errors import ProtocolError
from .fields import number, numbers, parse_json, whole, whole_or_none


@dataclass(frozen=True)
class EvaluateResult:
    """Loss and metrics of a batch, at one version of the parameters.

    Attributes:
        loss: the model's loss, reduced over the batch as the model says (mean, usually).
        metrics: metric -> value.
        version: the version that was evaluated.
        samples: the number of samples in the batch.
    """

    loss: float
    metrics: Mapping[str, float]
    version: int
    samples: int

    @classmethod
    def from_dict(cls, document: Mapping[str, Any]) -> Self:
        """Read the record from JSON values."""
        return cls(
            loss=number(document, "loss"),
            metrics=numbers(document, "metrics"),
            version=whole(document, "version"),
            samples=whole(document, "samples"),
        )

    def to_dict(self) -> dict[str, Any]:
        """Return the record as JSON values."""
        return dict(vars(self))


@dataclass(frozen=True)
class StepResult:
    """What one step did.

    Attributes:
        loss: the loss of the batch before the step.
        metrics: metric -> value, before the step.
        version: the version after the step.
        step_norm: the Euclidean norm of the change over all parameters.
        samples: the number of samples in the batch.
        update: what the rule tells of the step (the damping, the share clipped, ...) -> value.
        durable_version: the session's newest durable version when the answer was given; None where
            nothing is kept. Not part of what is kept of the step, so not of `to_dict`.
    """

    loss: float
    metrics: Mapping[str, float]
    version: int
    step_norm: float
    samples: int
    update: Mapping[str, float]
    durable_version: int | None = None

    @classmethod
    def from_dict(cls, document: Mapping[str, Any]) -> Self:
        """Read the record from JSON values."""
        return cls(
            loss=number(document, "loss"),
            metrics=numbers(document, "metrics"),
            version=whole(document, "version"),
            step_norm=number(document, "step_norm"),
            samples=whole(document, "samples"),
            update=numbers(document, "update"),
            durable_version=whole_or_none(document, "durable_version")
            if "durable_version" in document
            else None,
        )

    def to_dict(self) -> dict[str, Any]:
        """Return the record as JSON values."""
        members = dict(vars(self))  # `asdict` would copy each value, at every step
        del members["durable_version"]
        return members

    def _repr_html_(self) -> str:
        """Return the result as a notebook shows it."""
        rows = {
            "loss": self.loss,
            **self.metrics,
            "samples": self.samples,
            "step norm": self.step_norm,
            **self.update,
        }
        return html_table(f"step to version {self.version}", rows)


@dataclass(frozen=True)
class ForwardBackwardResult:
    """What a batch adds to the pending gradient.

    Attributes:
        loss: the loss of the batch.
        metrics: metric -> value.
        version: the version that was differentiated.
        seed: the seed that the Monte-Carlo draws came from.
        samples: the number of samples in the batch.
        pending: how many batches are pending now, this one included.
        grad_norms: parameter name -> Euclidean norm of the pending gradient.
    """

    loss: float
    metrics: Mapping[str, float]
    version: int
    seed: int
    samples: int
    pending: int
    grad_norms: Mapping[str, float]

    @classmethod
    def from_dict(cls, document: Mapping[str, Any]) -> Self:
        """Read the record from JSON values."""
        return cls(
            loss=number(document, "loss"),
            metrics=numbers(document, "metrics"),
            version=whole(document, "version"),
            seed=whole(document, "seed"),
            samples=whole(document, "samples"),
            pending=whole(document, "pending"),
            grad_norms=numbers(document, "grad_norms"),
        )

    def to_dict(self) -> dict[str, Any]:
        """Return the record as JSON values."""
        return dict(vars(self))


@dataclass(frozen=True)
class CurvatureResult:
    """Quantities of a batch, at one version of the parameters.

    Attributes:
        loss: the loss of the batch.
        metrics: metric -> value.
        version: the version that was differentiated.
        seed: the seed that the Monte-Carlo draws came from.
        samples: the number of samples in the batch.
        tensors: quantity -> parameter name -> tensor.
    """

    loss: float
    metrics: Mapping[str, float]
    version: int
    seed: int
    samples: int
    tensors: Mapping[str, Mapping[str, Tensor]]

    @classmethod
    def from_wire(cls, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> Self:
        """Read the record from a decoded body.

        Args:
            tensors: `quantity.parameter` -> tensor.
            metadata: loss, metrics (JSON), version, seed and samples as strings.
        """
        values = {name: parse_json(metadata[name]) for name in _METADATA if name in metadata}
        return cls(
            loss=number(values, "loss"),
            metrics=numbers(values, "metrics"),
            version=whole(values, "version"),
            seed=whole(values, "seed"),
            samples=whole(values, "samples"),
            tensors=_by_quantity(tensors),
        )

    def to_wire(self) -> tuple[dict[str, Tensor], dict[str, str]]:
        """Return the tensors and the metadata that `wire.encode` takes."""
        tensors = {
            f"{quantity}.{name}": tensor
            for quantity, parameters in self.tensors.items()
            for name, tensor in parameters.items()
        }
        return tensors, {name: json.dumps(getattr(self, name)) for name in _METADATA}

    def _repr_html_(self) -> str:
        """Return the result as a notebook shows it: norms and medians, not tensors."""
        rows: dict[str, object] = {"loss": self.loss, **self.metrics, "samples": self.samples}
        for quantity, parameters in self.tensors.items():
            for name, tensor in parameters.items():
                flat = tensor.float().flatten()
                rows[f"{quantity} {name}"] = f"norm {flat.norm():.3g}, median {flat.median():.3g}"
        return html_table(f"curvature at version {self.version}", rows)


_METADATA = ("loss", "metrics", "version", "seed", "samples")


def _by_quantity(tensors: Mapping[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    grouped: dict[str, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        quantity, dot, name = key.partition(".")
        if not (quantity and dot and name):
            raise ProtocolError(f"the tensor {key!r} is not named quantity.parameter")
        grouped.setdefault(quantity, {})[name] = tensor
    return grouped
