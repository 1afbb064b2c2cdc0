"""Pixels as a network wants them."""

from collections.abc import Sequence

from torch import Tensor

MEAN = 0.1307
"""Mean of MNIST's training pixels on the scale 0..1."""

STANDARD_DEVIATION = 0.3081
"""Standard deviation of MNIST's training pixels on the scale 0..1."""


def normalise(images: Tensor) -> Tensor:
    """Return (x / 255 - 0.1307) / 0.3081, bit for bit what torchvision's transforms give.

    Args:
        images: uint8 grey values 0..255, any shape.

    Returns:
        float32 of the same shape and device.
    """
    pixels = images.float()
    return _divided(_divided(pixels, 255).sub_(MEAN), STANDARD_DEVIATION)


def normalise_colours(images: Tensor, mean: Sequence[float], deviation: Sequence[float]) -> Tensor:
    """Return (x / 255 - mean) / deviation, bit for bit what torchvision's transforms give.

    Args:
        images: uint8 0..255, [N, C, H, W].
        mean: of each of the C colours.
        deviation: the standard deviation of each.

    Returns:
        float32 of the same shape and device.
    """
    pixels = _divided(images.float(), 255)
    for colour, (mu, sigma) in enumerate(zip(mean, deviation, strict=True)):
        _divided(pixels[:, colour].sub_(mu), sigma)
    return pixels


def _divided(pixels: Tensor, divisor: float) -> Tensor:
    """Divide in place, on any device: by a number, a GPU would multiply by its reciprocal."""
    return pixels.div_(pixels.new_full((), divisor))
