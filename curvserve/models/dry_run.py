"""Running a model once on made-up samples, to find what is wrong with it before a client does."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from .errors import ModelUnfit
from .specification import SampleSpec

SAMPLES = 2
"""As few as show whether samples are mixed."""


def draw(spec: SampleSpec, samples: int, seed: int = 0) -> Tensor:
    """Return samples that a specification allows, the same each time.

    Args:
        spec: the specification.
        samples: how many.
        seed: of the draw.

    Returns:
        Normal numbers within its bounds, or any of the integers between them (0 and 1 without).
    """
    shape, low, high = (samples, *spec.shape), spec.minimum, spec.maximum
    generator = torch.Generator().manual_seed(seed)
    if spec.dtype.is_floating_point:
        drawn = torch.randn(shape, generator=generator).to(spec.dtype)
        return drawn if low is high is None else drawn.clamp(low, high)
    least, most = int(low or 0), 1 if high is None else int(high)
    return torch.randint(least, most + 1, shape, generator=generator).to(spec.dtype)


def made(name: str, what: str, make: Callable[[], nn.Module]) -> nn.Module:
    """Return the module that a model's `build` or `loss` makes.

    Args:
        name: the model's name, for errors.
        what: `build` or `loss`.
        make: the function.

    Raises:
        ModelUnfit: it fails, or returns something else.
    """
    try:
        module: object = make()
    except ModelUnfit:
        raise
    except Exception as error:  # whatever an author's code raises
        raise ModelUnfit(f"model {name!r}: {what}() failed: {in_a_line(error)}") from error
    if not isinstance(module, nn.Module):
        kind = type(module).__name__
        raise ModelUnfit(f"model {name!r}: {what}() returns a {kind}, expected a torch.nn.Module")
    return module


def outputs_of(name: str, network: nn.Module, inputs: Tensor) -> Tensor:
    """Return a network's outputs.

    Args:
        name: the model's name, for errors.
        network: the network.
        inputs: made-up samples.

    Raises:
        ModelUnfit: it fails, or returns anything but one tensor of finite floating point numbers.
    """
    said = f"model {name!r}: a batch {list(inputs.shape)} of made-up inputs"
    try:
        outputs = network(inputs)
    except Exception as error:  # whatever an author's code raises
        raise ModelUnfit(f"{said} fails: {in_a_line(error)}") from error
    if not isinstance(outputs, Tensor) or not outputs.is_floating_point():
        kind = outputs.dtype if isinstance(outputs, Tensor) else type(outputs).__name__
        raise ModelUnfit(f"{said} gives {kind}, expected one tensor of floating point numbers")
    if not bool(torch.isfinite(outputs).all()):
        raise ModelUnfit(
            f"{said} gives outputs that are not finite: if some inputs have none, rule them out by "
            "a minimum and a maximum in the specification"
        )
    return outputs


def in_a_line(error: Exception) -> str:
    """Return an error's type and the first line of what it says."""
    text = str(error).strip().partition("\n")[0]
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
