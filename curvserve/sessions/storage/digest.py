"""A digest of a state: equal for equal bits, whatever the order of the names."""

import json
from collections.abc import Mapping
from typing import Any

import xxhash
from curvserve_client import wire
from torch import Tensor


def digest(
    tensors: Mapping[str, Mapping[str, Tensor]], scalars: Mapping[str, Any] | None = None
) -> str:
    """Return the digest of a state, 32 hexadecimal digits.

    It is XXH3-128 over the state as a safetensors file: names, dtypes, shapes, every bit of every
    tensor, and the scalars. It finds damage and differences, not forgery.

    Args:
        tensors: group -> name -> tensor, of dtypes that travel.
        scalars: JSON values.
    """
    text = json.dumps({"groups": sorted(tensors), "scalars": scalars or {}}, sort_keys=True)
    return hash_parts(wire.encode(flatten(tensors), {"state": text}))


def hash_parts(parts: list[memoryview]) -> str:
    """Return XXH3-128 of the concatenation of parts, as hexadecimal digits."""
    hasher = xxhash.xxh3_128()
    for part in parts:
        hasher.update(part)
    return hasher.hexdigest()


def flatten(tensors: Mapping[str, Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """Return `group.name` -> tensor; a group's name has no dot in it."""
    return {f"{g}.{name}": tensor for g, group in tensors.items() for name, tensor in group.items()}
