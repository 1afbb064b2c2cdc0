"""What reader and writer agree on."""

from dataclasses import dataclass

import torch

MEDIA_TYPE = "application/vnd.safetensors"
"""The content type of a body of tensors."""

MAX_HEADER = 8 * 1024 * 1024
"""The longest header that is read, in bytes."""

DTYPES: dict[str, torch.dtype] = {
    "BOOL": torch.bool,
    "U8": torch.uint8,
    "I8": torch.int8,
    "I16": torch.int16,
    "I32": torch.int32,
    "I64": torch.int64,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F32": torch.float32,
    "F64": torch.float64,
}
"""Every dtype that travels, by its name in the header."""

METADATA = "__metadata__"
"""The header's one member that is not a tensor."""

Buffer = bytes | bytearray | memoryview
"""What a body is read from."""


@dataclass(frozen=True)
class TensorInfo:
    """What a header says of one tensor.

    Attributes:
        name: the tensor's name.
        dtype: its torch dtype.
        shape: its shape.
        start: the first byte of its data, counted from the beginning of the body.
        end: the byte after its last.
    """

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]
    start: int
    end: int
