"""From tensors to bytes."""

import ctypes
import json
from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor

from .layout import DTYPES, MAX_HEADER, METADATA

_NAMES = {dtype: name for name, dtype in DTYPES.items()}


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
    header: dict[str, Any] = {METADATA: dict(metadata)} if metadata else {}
    position = 0
    for name, tensor in ready.items():
        end = position + tensor.nbytes
        header[name] = {
            "dtype": _NAMES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [position, end],
        }
        position = end
    return [_header_bytes(header), *(_memory(tensor) for tensor in ready.values())]


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


def _header_bytes(header: Mapping[str, Any]) -> memoryview:
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    if len(text) > MAX_HEADER:
        raise ValueError(f"the header takes {len(text)} bytes, at most {MAX_HEADER} are read")
    return memoryview(len(text).to_bytes(8, "little") + text)


def _memory(tensor: Tensor) -> memoryview:
    if tensor.nbytes == 0:
        return memoryview(b"")
    array = (ctypes.c_ubyte * tensor.nbytes).from_address(tensor.data_ptr())
    array.owner = tensor  # type: ignore[attr-defined]  # the view holds the array, it the tensor
    return memoryview(array).cast("B")
