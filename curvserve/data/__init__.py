"""Images to train from: the bundled digits, and real MNIST read from a folder."""

from .digits import load_digits
from .mnist import load_mnist
from .normalise import normalise

__all__ = ["load_digits", "load_mnist", "normalise"]
