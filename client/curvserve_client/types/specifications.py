"""What a model takes, and what a session is."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Self

import torch
from torch import Tensor

from .fields import (
    number_or_none,
    options,
    record,
    shape,
    text,
    texts,
    truth,
    whole,
    whole_or_none,
)


@dataclass(frozen=True)
class ParameterSpec:
    """One parameter of a model.

    Attributes:
        shape: its shape.
        dtype: its torch dtype without the prefix, for instance `float32`.
    """

    shape: tuple[int, ...]
    dtype: str

    @classmethod
    def of(cls, tensor: Tensor) -> Self:
        """Return the specification that a tensor meets."""
        return cls(tuple(tensor.shape), dtype_name(tensor.dtype))

    @classmethod
    def from_dict(cls, document: Mapping[str, Any]) -> Self:
        """Read the record from JSON values."""
        return cls(shape(document, "shape"), text(document, "dtype"))

    def to_dict(self) -> dict[str, Any]:
        """Return the record as JSON values."""
        return {"shape": list(self.shape), "dtype": self.dtype}


@dataclass(frozen=True)
class TensorSpec:
    """What a model takes as inputs, or as targets.

    Attributes:
        dtype: the dtypes it takes, without the torch prefix; the first is its own.
        shape: the shape of one sample; a batch has one axis before it.
        minimum: the smallest value allowed, or None.
        maximum: the largest value allowed, or None.
        meaning: in words, what the numbers are.
    """

    dtype: tuple[str, ...]
    shape: tuple[int, ...]
    minimum: float | None = None
    maximum: float | None = None
    meaning: str = ""

    @classmethod
    def from_dict(cls, document: Mapping[str, Any]) -> Self:
        """Read the record from JSON values."""
        return cls(
            dtype=texts(document, "dtype"),
            shape=shape(document, "shape"),
            minimum=number_or_none(document, "minimum"),
            maximum=number_or_none(document, "maximum"),
            meaning=text(document, "meaning"),
        )

    def to_dict(self) -> dict[str, Any]:
        """Return the record as JSON values."""
        return dataclasses.asdict(self) | {"dtype": list(self.dtype), "shape": list(self.shape)}


@dataclass(frozen=True)
class ModelSpec:
    """What a registered model is and serves.

    Attributes:
        name: the model's name.
        parameters: parameter name -> specification, in the module's order.
        inputs: what it takes as inputs.
        targets: what it takes as targets.
        loss: the loss, by its torch name.
        metrics: the metrics reported beside the loss.
        quantities: the quantities that `curvature` can be asked for.
        max_batch: the largest number of samples in one batch.
        refused: quantity -> why this model does not have it.
        device: where it is computed, for instance `cpu` or `cuda:0`.
    """

    name: str
    parameters: Mapping[str, ParameterSpec]
    inputs: TensorSpec
    targets: TensorSpec
    loss: str
    metrics: tuple[str, ...]
    quantities: tuple[str, ...]
    max_batch: int
    refused: Mapping[str, str] = field(default_factory=dict)
    device: str = ""

    @classmethod
    def from_dict(cls, document: Mapping[str, Any]) -> Self:
        """Read the record from JSON values."""
        return cls(
            name=text(document, "name"),
            parameters=_parameters(document),
            inputs=TensorSpec.from_dict(record(document, "inputs")),
            targets=TensorSpec.from_dict(record(document, "targets")),
            loss=text(document, "loss"),
            metrics=texts(document, "metrics"),
            quantities=texts(document, "quantities"),
            max_batch=whole(document, "max_batch"),
            refused=_sentences(document, "refused"),
            device=text(document, "device"),
        )

    def to_dict(self) -> dict[str, Any]:
        """Return the record as JSON values."""
        return {
            "name": self.name,
            "parameters": {name: spec.to_dict() for name, spec in self.parameters.items()},
            "inputs": self.inputs.to_dict(),
            "targets": self.targets.to_dict(),
            "loss": self.loss,
            "metrics": list(self.metrics),
            "quantities": list(self.quantities),
            "max_batch": self.max_batch,
            "refused": dict(self.refused),
            "device": self.device,
        }


@dataclass(frozen=True)
class SessionInfo:
    """A session as it is now.

    Attributes:
        name: the session's name.
        model: the name of its model.
        version: grows by one at every change of the training state.
        durable_version: the newest version that survives what `durability` promises; None at
            `none`.
        durability: `full`, `process`, `snapshot` or `none`; see docs/guarantees.md.
        seed: the seed of its initial parameters and of every draw (`draw_seed`).
        rule: the name of its update rule.
        options: the rule's options.
        steps: how many steps it has taken.
        pending: how many batches wait for `optim_step`.
        parameters: parameter name -> specification, in the module's order.
        created: when, as ISO 8601 in UTC.
        problems: what was found damaged or different when the server last started; none, mostly.
        execution: how batches of its model are computed: eagerly, or compiled for some shapes.
        owner: the name of the API key that began it; empty where there was none.
    """

    name: str
    model: str
    version: int
    durable_version: int | None
    durability: str
    seed: int
    rule: str
    options: Mapping[str, bool | int | float]
    steps: int
    pending: int
    parameters: Mapping[str, ParameterSpec]
    created: str
    problems: tuple[str, ...] = ()
    execution: str = ""
    owner: str = ""

    @classmethod
    def from_dict(cls, document: Mapping[str, Any]) -> Self:
        """Read the record from JSON values."""
        return cls(
            name=text(document, "name"),
            model=text(document, "model"),
            version=whole(document, "version"),
            durable_version=whole_or_none(document, "durable_version"),
            durability=text(document, "durability"),
            seed=whole(document, "seed"),
            rule=text(document, "rule"),
            options=options(document, "options"),
            steps=whole(document, "steps"),
            pending=whole(document, "pending"),
            parameters=_parameters(document),
            created=text(document, "created"),
            problems=texts(document, "problems"),
            execution=text(document, "execution"),
            owner=text(document, "owner"),
        )

    def to_dict(self) -> dict[str, Any]:
        """Return the record as JSON values."""
        parameters = {name: spec.to_dict() for name, spec in self.parameters.items()}
        return dataclasses.asdict(self) | {
            "parameters": parameters,
            "problems": list(self.problems),
        }


@dataclass(frozen=True)
class CheckpointSpec:
    """A version of a session that is kept under a name.

    Attributes:
        name: its name, unique within the session.
        version: the version that it holds.
        size: bytes of its file.
        created: when it was made, as ISO 8601 in UTC.
        with_rule_state: whether it holds what the rule remembered too.
    """

    name: str
    version: int
    size: int
    created: str
    with_rule_state: bool

    @classmethod
    def from_dict(cls, document: Mapping[str, Any]) -> Self:
        """Read the record from JSON values."""
        return cls(
            name=text(document, "name"),
            version=whole(document, "version"),
            size=whole(document, "size"),
            created=text(document, "created"),
            with_rule_state=truth(document, "with_rule_state"),
        )

    def to_dict(self) -> dict[str, Any]:
        """Return the record as JSON values."""
        return dataclasses.asdict(self)


def dtype_name(dtype: torch.dtype) -> str:
    """Return a dtype's name without the torch prefix, for instance `float32`."""
    return str(dtype).removeprefix("torch.")


def _parameters(document: Mapping[str, Any]) -> dict[str, ParameterSpec]:
    found = record(document, "parameters")
    return {name: ParameterSpec.from_dict(record(found, name)) for name in found}


def _sentences(document: Mapping[str, Any], member: str) -> dict[str, str]:
    found = record(document, member)
    return {name: text(found, name) for name in found}
