"""From tensors to bytes."""

import ctypes
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from .layout import DTYPES, MAX_HEADER, METADATA

Described = tuple[str, torch.dtype, Sequence[int]]
"""A tensor's name, dtype and shape."""

_NAMES = {dtype: name for name, dtype in DTYPES.items()}
_FEW = 16  # tensors


def encode(
    tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None
) -> list[memoryview]:
    """Write tensors as the parts of a body: the header, then one memoryview per tensor.

    Contiguous CPU tensors are not copied: the views look at their memory and keep them alive, so
    they must not be written to until the parts are sent. Others are brought to the CPU first.

    Args:
        tensors: name -> tensor of a dtype in `DTYPES`.
        metadata: strings to travel in the header.

    Returns:
        The parts, whose concatenation is the body.

    Raises:
        TypeError: a dtype that does not travel, or metadata that are not strings.
        ValueError: a tensor is called `__metadata__`, or the header exceeds `MAX_HEADER`.
    """
    _check_metadata(metadata or {})
    ready = {name: _ready(name, tensors[name]) for name in _data_order(tensors)}
    described = tuple((name, tensor.dtype, tensor.shape) for name, tensor in ready.items())
    if metadata or len(described) > _FEW:
        header = _header(described, metadata or {})
    else:
        header = _usual_header(described)
    return [memoryview(header), *(_memory(tensor) for tensor in ready.values())]


def length(parts: Iterable[memoryview]) -> int:
    """Return the number of bytes in a body's parts."""
    return sum(part.nbytes for part in parts)


def _check_metadata(metadata: Mapping[str, str]) -> None:
    for name, text in metadata.items():
        if not isinstance(name, str) or not isinstance(text, str):
            raise TypeError(f"metadata are strings: {name!r} is {text!r}")


def _data_order(tensors: Mapping[str, Tensor]) -> list[str]:
    # the widest dtype first: with a header padded to 8 bytes, all data are aligned
    return sorted(tensors, key=lambda name: (-tensors[name].dtype.itemsize, name))


def _ready(name: str, tensor: Tensor) -> Tensor:
    if name == METADATA:
        raise ValueError(f"{METADATA} is the format's own name, not a tensor's")
    if tensor.dtype not in _NAMES:
        raise TypeError(f"{name!r} is {tensor.dtype}; these travel: {', '.join(DTYPES)}")
    return tensor.detach().cpu().contiguous().resolve_neg()


@lru_cache(64)
def _usual_header(described: Sequence[Described]) -> bytes:
    """Return the header of a batch: those of a loop have the same one again and again."""
    return _header(described, {})


def _header(described: Sequence[Described], metadata: Mapping[str, str]) -> bytes:
    header: dict[str, Any] = {METADATA: dict(metadata)} if metadata else {}
    position = 0
    for name, dtype, shape in described:
        end = position + math.prod(shape) * dtype.itemsize
        offsets = [position, end]
        header[name] = {"dtype": _NAMES[dtype], "shape": list(shape), "data_offsets": offsets}
        position = end
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    if len(text) > MAX_HEADER:
        raise ValueError(f"the header takes {len(text)} bytes, at most {MAX_HEADER} are read")
    return len(text).to_bytes(8, "little") + text


def _memory(tensor: Tensor) -> memoryview:
    if tensor.nbytes == 0:
        return memoryview(b"")
    array = (ctypes.c_ubyte * tensor.nbytes).from_address(tensor.data_ptr())
    array.owner = tensor  # type: ignore[attr-defined]  # the view holds the array, it the tensor
    return memoryview(array).cast("B")
