"""Bodies of tensors, good and bad, for the tests of the wire format."""

import json
from typing import Any

import torch
from curvserve_client import wire
from hypothesis import strategies as st
from torch import Tensor

SHAPES = st.lists(st.integers(0, 4), max_size=4).map(tuple)
TEXT = st.text(max_size=8)

STRICTER = (
    "does not begin with '{'",
    "a dtype that does not travel",
    "twice",
    "is not described by dtype, shape and data_offsets",
    "which is no size or offset",  # of a member that is unknown
    "which is not a string",
    "is not an object",
    "is empty, and its other axes are absurdly large",
    "has no valid shape",
    "is BOOL and has a byte other than 0 and 1",
)
"""Reasons for which our reader refuses what the safetensors package takes."""


@st.composite
def tensors(draw: st.DrawFn, dtypes: list[torch.dtype]) -> Tensor:
    """A tensor of any bits, contiguous or not."""
    dtype, shape = draw(st.sampled_from(dtypes)), draw(SHAPES)
    count = torch.empty(shape, dtype=dtype).nbytes
    bits = st.integers(0, 1 if dtype is torch.bool else 255)
    data = torch.tensor(draw(st.lists(bits, min_size=count, max_size=count)), dtype=torch.uint8)
    tensor = data.view(dtype).view(shape) if count else torch.empty(shape, dtype=dtype)
    return tensor.mT if tensor.ndim > 1 and draw(st.booleans()) else tensor


def named(dtypes: list[torch.dtype]) -> st.SearchStrategy[dict[str, Tensor]]:
    names = TEXT.filter(lambda name: name != "__metadata__")
    return st.dictionaries(names, tensors(dtypes), max_size=5)


NAMED_TENSORS = named(list(wire.DTYPES.values()))


Bits = tuple[torch.dtype, tuple[int, ...], list[int]]


def bits(tensor: Tensor) -> Bits:
    flat = tensor.contiguous().flatten()
    data = flat.view(torch.uint8).tolist() if flat.nbytes else []
    return tensor.dtype, tuple(tensor.shape), data


def all_bits(tensors: dict[str, Tensor]) -> dict[str, Bits]:
    """What two equal sets of tensors have in common, NaN or not."""
    return {name: bits(tensor) for name, tensor in tensors.items()}


def joined(parts: list[memoryview]) -> bytearray:
    return bytearray(b"".join(parts))


def body(header: object, data: bytes = b"") -> bytearray:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return bytearray(len(text).to_bytes(8, "little") + text + data)


def entry(dtype: object = "F32", shape: object = (2,), offsets: object = (0, 8)) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}
