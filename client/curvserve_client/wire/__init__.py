"""Tensors on the wire: the safetensors layout, read and written without copying the data.

A body is eight bytes N (little endian), N bytes of JSON, and the tensors' bytes one after another:
`{"name": {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]}, "__metadata__": {...}}`.
What the safetensors package refuses is refused here too, and beyond it: a header over 8 MiB,
dtypes outside `DTYPES`, a name given twice, unknown members, numbers that are no size wherever they
stand, BOOL bytes other than 0 and 1, more than 64 axes, and empty tensors whose other axes are
absurd. Sizes are compared as Python integers before anything is allocated. Hosts are taken to be
little endian, as torch's CPU and GPU hosts are.

Format: https://huggingface.co/docs/safetensors/index#format
"""

from .layout import DTYPES, MAX_HEADER, MEDIA_TYPE, Buffer, TensorInfo
from .reading import decode, read_header
from .writing import encode, length

__all__ = [
    "DTYPES",
    "MAX_HEADER",
    "MEDIA_TYPE",
    "Buffer",
    "TensorInfo",
    "decode",
    "encode",
    "length",
    "read_header",
]
