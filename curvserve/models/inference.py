"""What inputs and targets are, where their author has not written it."""

from collections.abc import Callable

from torch import Tensor, int64, nn, random

from .dry_run import SAMPLES, draw, made, outputs_of
from .errors import ModelUnfit
from .specification import SampleSpec


def infer(
    name: str,
    build: Callable[[], nn.Module],
    loss: Callable[[], nn.Module],
    inputs: SampleSpec | Tensor,
) -> tuple[SampleSpec, SampleSpec]:
    """Return the specifications of a model's inputs and targets.

    Args:
        name: the model's name, for errors.
        build: returns the network, which is run once.
        loss: returns the loss module.
        inputs: a batch of floating point numbers, or a specification.

    Raises:
        ModelUnfit: they cannot be inferred; the text says what to write.
    """
    spec = inputs if isinstance(inputs, SampleSpec) else _like(name, inputs)
    with random.fork_rng([]):  # as a caller's own numbers are none of its business
        outputs = outputs_of(name, made(name, "build", build), draw(spec, SAMPLES))
    if outputs.dim() == 0 or len(outputs) != SAMPLES:
        raise _unknown(name, f"{SAMPLES} samples give outputs {list(outputs.shape)}")
    return spec, _targets(name, made(name, "loss", loss), outputs)


def _like(name: str, batch: Tensor) -> SampleSpec:
    if batch.dim() == 0:
        raise ModelUnfit(f"model {name!r}: the example of its inputs has no axis of samples")
    shape = tuple(batch.shape[1:])
    if not batch.is_floating_point():
        raise ModelUnfit(
            f"model {name!r}: the range of integer inputs cannot be inferred: write "
            f"inputs=SampleSpec(shape={shape}, dtype={batch.dtype}, minimum=0, maximum=...)"
        )
    return SampleSpec(shape=shape, dtype=batch.dtype)


def _targets(name: str, loss: nn.Module, outputs: Tensor) -> SampleSpec:
    shape, dtype = tuple(outputs.shape[1:]), outputs.dtype
    match loss:
        case nn.CrossEntropyLoss() | nn.NLLLoss() if shape:
            return SampleSpec(shape=shape[1:], dtype=int64, minimum=0, maximum=shape[0] - 1)
        case nn.MSELoss() | nn.L1Loss() | nn.SmoothL1Loss() | nn.HuberLoss():
            return SampleSpec(shape=shape, dtype=dtype)
        case nn.BCEWithLogitsLoss():
            return SampleSpec(shape=shape, dtype=dtype, minimum=0, maximum=1)
        case nn.PoissonNLLLoss():
            return SampleSpec(shape=shape, dtype=dtype, minimum=0)
    kind = type(loss).__name__
    raise _unknown(name, f"the loss is {kind}, the outputs are {list(outputs.shape)}")


def _unknown(name: str, why: str) -> ModelUnfit:
    return ModelUnfit(
        f"model {name!r}: what its targets are cannot be inferred ({why}): make it by "
        "Model(..., inputs=SampleSpec(shape=..., dtype=...), targets=SampleSpec(...))"
    )
