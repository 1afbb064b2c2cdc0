"""What one sample of a model's inputs or targets must be, and the check of a tensor against it."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Protocol

import torch
from curvserve_client.errors import InvalidBatch
from curvserve_client.types import TensorSpec, dtype_name
from torch import Tensor


class Described(Protocol):
    """Anything of which dtype and shape are known: a tensor, or only its entry in a header."""

    @property
    def dtype(self) -> torch.dtype:
        """Element type."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Sizes, samples first."""


@dataclass(frozen=True)
class SampleSpec:
    """One sample of a model's inputs or of its targets.

    Attributes:
        shape: sizes of one sample, without the batch axis.
        dtype: what the model (or its loss) takes.
        conversions: further dtypes that a batch may have -> how such a tensor becomes `dtype`.
        minimum: smallest value allowed in a tensor of `dtype`, or None.
        maximum: largest value allowed in a tensor of `dtype`, or None.
        meaning: one line for people.
    """

    shape: tuple[int, ...]
    dtype: torch.dtype
    conversions: Mapping[torch.dtype, Callable[[Tensor], Tensor]] = field(default_factory=dict)
    minimum: float | None = None
    maximum: float | None = None
    meaning: str = ""

    @property
    def dtypes(self) -> tuple[torch.dtype, ...]:
        """Every dtype that a batch may have, the model's own first."""
        return (self.dtype, *self.conversions)

    def check_layout(self, name: str, given: Described) -> None:
        """Refuse a tensor by its dtype and shape alone; its bytes are not looked at.

        Args:
            name: the tensor's name in the batch, for the message.
            given: its dtype and its shape, samples first.

        Raises:
            InvalidBatch: naming the tensor and what was expected.
        """
        shape = tuple(given.shape)
        if given.dtype not in self.dtypes or not shape or shape[1:] != self.shape:
            found = f"{name} is {dtype_name(given.dtype)} {list(shape)}"
            raise InvalidBatch(found, tensor=name, expected=self.expected())

    def check_values(self, name: str, tensor: Tensor) -> None:
        """Refuse a tensor by its values: not finite, or outside the range.

        Args:
            name: the tensor's name in the batch, for the message.
            tensor: one that passed `check_layout`.

        Raises:
            InvalidBatch: naming the tensor, the first sample at fault and what was expected.
        """
        if tensor.dtype != self.dtype or self._is_within(tensor):
            return  # every value of a converted dtype is legal
        wrong = self._wrong(tensor)
        if bool(wrong.any()):
            sample = int(wrong.nonzero()[0, 0])
            message = f"{name} of sample {sample}: a value that is not finite or out of range"
            raise InvalidBatch(message, tensor=name, expected=self.expected())

    def convert(self, tensor: Tensor) -> Tensor:
        """Return a tensor that passed the checks in the model's own dtype."""
        return tensor if tensor.dtype == self.dtype else self.conversions[tensor.dtype](tensor)

    def describe(self) -> TensorSpec:
        """Return the specification as it is told to clients."""
        return TensorSpec(
            dtype=tuple(dtype_name(dtype) for dtype in self.dtypes),
            shape=self.shape,
            minimum=self.minimum,
            maximum=self.maximum,
            meaning=self.meaning,
        )

    def expected(self) -> str:
        """Return dtypes, shape and bounds of a batch in words."""
        dtypes = " or ".join(dtype_name(dtype) for dtype in self.dtypes)
        sizes = ", ".join(["N", *map(str, self.shape)])
        low, high = self.minimum, self.maximum
        bounds = "" if low is None and high is None else f", values from {low} to {high}"
        return f"{dtypes} [{sizes}]{bounds}"

    def _is_within(self, tensor: Tensor) -> bool:
        """Tell whether no value can be wrong, by the ends alone: faster than to search."""
        if not tensor.numel():
            return True
        low, high = (end.item() for end in torch.aminmax(tensor))  # both NaN where any value is
        least = -math.inf if self.minimum is None else self.minimum
        most = math.inf if self.maximum is None else self.maximum
        return least <= low and high <= most and math.isfinite(low) and math.isfinite(high)

    def _wrong(self, tensor: Tensor) -> Tensor:
        wrong = ~torch.isfinite(tensor)
        for bound, beyond in ((self.minimum, torch.lt), (self.maximum, torch.gt)):
            if bound is not None:
                wrong |= beyond(tensor, bound)
        return wrong
