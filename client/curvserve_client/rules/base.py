"""What every update rule takes and gives: plain values, so that a step can be repeated anywhere."""

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Protocol

from torch import Tensor

Tensors = Mapping[str, Tensor]
"""Parameter name -> tensor."""

Quantities = Mapping[str, Mapping[str, Any]]
"""Quantity -> parameter name -> tensor, or list of Kronecker factors."""

LossAt = Callable[[Tensors], float]
"""The loss of the step's batch at other parameters: one forward pass."""


@dataclass(frozen=True, eq=False)
class RuleState:
    """What a rule remembers from step to step; none of it is ever written in place.

    Attributes:
        scalars: name -> finite number; `steps`, the steps taken, is always among them.
        tensors: slot -> parameter name -> tensor of the rule's own.
    """

    scalars: Mapping[str, float] = field(default_factory=lambda: {"steps": 0.0})
    tensors: Mapping[str, Tensors] = field(default_factory=dict)

    def counted(self) -> "RuleState":
        """Return the state one step later."""
        return self.with_scalars(steps=self.scalars["steps"] + 1)

    def with_scalars(self, **scalars: float) -> "RuleState":
        """Return the state with some of its numbers replaced."""
        return RuleState({**self.scalars, **scalars}, self.tensors)

    def with_slot(self, slot: str, tensors: Tensors) -> "RuleState":
        """Return the state with a slot's tensors replaced; parameters not named keep theirs."""
        kept = {**self.tensors.get(slot, {}), **tensors}
        return RuleState(self.scalars, {**self.tensors, slot: kept})


@dataclass(frozen=True, eq=False)
class Update:
    """What one step of a rule made.

    Attributes:
        parameters: the parameters after the step, in the order they were given; one without a
            gradient is the tensor that was given.
        state: the rule's state after the step.
        metrics: name -> number or 0-dim tensor: what the rule has to tell of this step.
    """

    parameters: Tensors
    state: RuleState
    metrics: Mapping[str, float | Tensor]


class Rule(Protocol):
    """How quantities become a step: a frozen dataclass whose fields are the rule's options.

    Attributes:
        name: what the rule is called on the wire.
    """

    __dataclass_fields__: ClassVar[dict[str, dataclasses.Field[object]]]
    name: ClassVar[str]

    @property
    def elementwise(self) -> bool:
        """Whether each coordinate is stepped apart from the others.

        Then slices of the parameters can be updated in different places, and what the rule
        remembers are tensors of the parameters' shapes. The metrics are means over coordinates.
        """
        ...

    def start(self, parameters: Tensors) -> RuleState:
        """Return the state before the first step.

        Args:
            parameters: parameter name -> tensor.

        Raises:
            InvalidRule: a parameter is none that the rule can update.
        """
        ...

    def quantities(self, state: RuleState) -> tuple[str, ...]:
        """Return the names of the quantities that the step from a state reads."""
        ...

    def update(
        self,
        parameters: Tensors,
        quantities: Quantities,
        state: RuleState,
        *,
        loss: Tensor | float,
        loss_at: LossAt,
    ) -> Update:
        """Return the parameters and the state after one step; what is given is never written.

        Args:
            parameters: parameter name -> tensor of any shape.
            quantities: quantity -> parameter name -> tensor, or list of Kronecker factors; there
                may be more than the rule reads. A parameter without a gradient stays as it is.
            state: the state before the step.
            loss: the loss of the batch before the step.
            loss_at: gives the loss of the same batch at other parameters; called only by rules that
                try a step before they take it.

        Returns:
            New tensors of the parameters' shapes, dtypes and devices, the state after the step, and
            the rule's metrics.

        Raises:
            InvalidRule: the options do not fit what was given.
        """
        ...
