"""How tensors travel between the processes of a cluster: as bytes beside the message, not in it."""

import numpy
import ray.util
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

WITH_THE_CALL = 1024 * 1024
"""Bytes of tensors that go to each worker with its call; more is put where all can read it."""

Packed = tuple[NDArray[numpy.uint8] | None, torch.dtype, tuple[int, ...]]


def register() -> None:
    """Have Ray carry this process's tensors so; to be called in every process that sends any."""
    for kind in (Tensor, nn.Parameter):
        ray.util.register_serializer(kind, serializer=pack, deserializer=unpack)


def pack(tensor: Tensor) -> Packed:
    """Return a tensor in host memory as its bytes, dtype and shape; a `meta` tensor has no bytes.

    The bytes are not copied here.
    """
    if tensor.is_meta:
        return None, tensor.dtype, tuple(tensor.shape)
    flat = tensor.detach().contiguous().reshape(-1).view(torch.uint8)
    return flat.numpy(), tensor.dtype, tuple(tensor.shape)


def unpack(packed: Packed) -> Tensor:
    """Return the tensor, in memory of its own: what Ray hands out must not be written to."""
    data, dtype, shape = packed
    if data is None:
        return torch.empty(shape, dtype=dtype, device="meta")
    return torch.tensor(data).view(dtype).view(shape)
