"""What models of images take and give."""

from functools import partial

import torch

from ..data.normalise import normalise, normalise_colours
from .specification import SampleSpec

Colour = tuple[float, float, float]


def grey_digit() -> SampleSpec:
    """Return the specification of one of MNIST's images."""
    return SampleSpec(
        shape=(1, 28, 28),
        dtype=torch.float32,
        conversions={torch.uint8: normalise},
        meaning="grey image: float32 normalised by mean 0.1307 and standard deviation 0.3081, "
        "or uint8 0..255, which the server normalises so",
    )


def colour_image(size: int, mean: Colour, deviation: Colour) -> SampleSpec:
    """Return the specification of a square image of three colours.

    Args:
        size: pixels a side.
        mean: of each colour on the scale 0..1, which is subtracted.
        deviation: the standard deviation of each, by which is divided.
    """
    return SampleSpec(
        shape=(3, size, size),
        dtype=torch.float32,
        conversions={torch.uint8: partial(normalise_colours, mean=mean, deviation=deviation)},
        meaning=f"colour image: float32 normalised by means {_listed(mean)} and standard "
        f"deviations {_listed(deviation)}, or uint8 0..255, which the server normalises so",
    )


def class_of(count: int, meaning: str) -> SampleSpec:
    """Return the specification of a class, 0 to `count` - 1."""
    return SampleSpec(shape=(), dtype=torch.int64, minimum=0, maximum=count - 1, meaning=meaning)


def _listed(values: Colour) -> str:
    return ", ".join(map(str, values))
