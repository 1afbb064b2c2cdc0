"""A batch against its model: names, sizes and values."""

from collections.abc import Mapping

from curvserve_client.errors import InvalidBatch
from torch import Tensor

from .model import Model
from .specification import Described

NAMES = ("inputs", "targets")
"""The tensors of a batch."""


def check_layout(model: Model, batch: Mapping[str, Described]) -> int:
    """Check everything that is known before a tensor exists, and return the number of samples.

    Args:
        model: the batch's model.
        batch: tensor name -> dtype and shape.

    Raises:
        InvalidBatch: a wrong name, dtype, shape or number of samples.
    """
    if set(batch) != set(NAMES):
        stray = sorted(set(batch) ^ set(NAMES))
        message = f"the batch holds {sorted(batch)}; missing or unknown: {', '.join(stray)}"
        raise InvalidBatch(message, tensor=stray[0], expected=" and ".join(NAMES))
    model.inputs.check_layout("inputs", batch["inputs"])
    model.targets.check_layout("targets", batch["targets"])
    samples = batch["inputs"].shape[0]
    _check_samples(model, samples, batch["targets"].shape[0])
    return samples


def check_values(model: Model, batch: Mapping[str, Tensor]) -> None:
    """Check every value of a batch that passed `check_layout`; takes time, so not on an event loop.

    Args:
        model: the batch's model.
        batch: tensor name -> tensor, in host memory.

    Raises:
        InvalidBatch: a value that is not finite or out of range.
    """
    model.inputs.check_values("inputs", batch["inputs"])
    model.targets.check_values("targets", batch["targets"])


def _check_samples(model: Model, inputs: int, targets: int) -> None:
    if inputs != targets:
        message = f"{inputs} inputs, {targets} targets"
        raise InvalidBatch(message, tensor="targets", expected="one target for each input")
    if not 1 <= inputs <= model.max_batch:
        expected = f"1 to {model.max_batch} samples"
        raise InvalidBatch(f"a batch of {inputs} samples", tensor="inputs", expected=expected)
