"""Grey values as a network wants them: MNIST's usual normalisation."""

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
    return images.float().div_(255).sub_(MEAN).div_(STANDARD_DEVIATION)
