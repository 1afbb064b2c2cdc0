"""The bundled digits: 1,797 real handwritten digits, 45 KB (see ATTRIBUTION.md)."""

import gzip
from importlib import resources
from typing import Literal

import torch
from torch import Tensor

COUNT = 1797
HELD_OUT = 297
_SIDE = 8
_LEVELS = 16
_STRIDE = 1009  # prime to COUNT: mixes writers and classes without a generator


def load_digits(split: Literal["train", "test"] = "train") -> tuple[Tensor, Tensor]:
    """Return one part of the bundled digits in the shape and scale of MNIST.

    The split is fixed: 1,500 digits to train from and 297 held out.

    Args:
        split: `"train"` or `"test"`.

    Returns:
        images: uint8 [N, 1, 28, 28], scaled up bilinearly from 8x8.
        labels: int64 [N], the digit.

    Raises:
        ValueError: `split` is neither.
    """
    part = _part(split)
    packed = torch.frombuffer(bytearray(_unpack()), dtype=torch.uint8)
    pixels, labels = packed.split([COUNT * _SIDE * _SIDE, COUNT])
    order = (torch.arange(COUNT) * _STRIDE % COUNT)[part]
    return _scale_up(pixels.view(COUNT, 1, _SIDE, _SIDE)[order]), labels[order].long()


def _part(split: str) -> slice:
    parts = {"train": slice(None, COUNT - HELD_OUT), "test": slice(COUNT - HELD_OUT, None)}
    if split not in parts:
        raise ValueError(f"split is {split!r}; it must be 'train' or 'test'")
    return parts[split]


def _unpack() -> bytes:
    return gzip.decompress(resources.files(__package__).joinpath("digits.gz").read_bytes())


def _scale_up(images: Tensor) -> Tensor:
    """Return uint8 0..16, 8x8 as uint8 0..255, 28x28."""
    grey = images.float() * (255 / _LEVELS)
    large = torch.nn.functional.interpolate(grey, size=(28, 28), mode="bilinear")
    return large.round().to(torch.uint8)
