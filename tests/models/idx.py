"""MNIST's own file format, written: big-endian sizes, then the bytes."""

import struct
from pathlib import Path

import numpy
from numpy.typing import NDArray

Images = tuple[NDArray[numpy.uint8], NDArray[numpy.uint8]]


def write_mnist(folder: Path, *, train: Images, test: Images) -> None:
    """Write both parts where `torchvision.datasets.MNIST(folder)` looks for them."""
    raw = folder / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for prefix, (images, labels) in (("train", train), ("t10k", test)):
        (raw / f"{prefix}-images-idx3-ubyte").write_bytes(_idx(images))
        (raw / f"{prefix}-labels-idx1-ubyte").write_bytes(_idx(labels))


def _idx(array: NDArray[numpy.uint8]) -> bytes:
    unsigned_byte = 8
    head = bytes([0, 0, unsigned_byte, array.ndim])
    return head + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()
