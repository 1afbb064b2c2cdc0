"""Tensors in bodies: caps, safetensors and JSON, with names, dtypes and shapes checked first."""

import asyncio
import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NoReturn

import torch
from curvserve_client.errors import InvalidBatch, MalformedBody
from curvserve_client.types import ParameterSpec, dtype_name
from curvserve_client.wire import decode
from torch import Tensor

from .. import phases
from ..models import Model
from ..models.specification import Described, SampleSpec
from ..sessions import Tensors
from .body import JSON, Body

LayoutCheck = Callable[[Mapping[str, Described]], object]


@dataclass(frozen=True)
class Layout:
    """Dtype and shape of a tensor that does not exist yet."""

    dtype: torch.dtype
    shape: tuple[int, ...]


def batch_bytes(model: Model) -> int:
    """Return the bytes that the tensors of the model's largest legal batch take."""
    return model.max_batch * sum(_sample_bytes(spec) for spec in (model.inputs, model.targets))


def parameter_bytes(parameters: Tensors) -> int:
    """Return the bytes that a model's parameters take."""
    return sum(tensor.nbytes for tensor in parameters.values())


async def read(body: Body, check: LayoutCheck, dtypes: Mapping[str, torch.dtype]) -> Tensors:
    """Return a body's tensors, on the CPU, as views of its bytes where it is safetensors.

    Args:
        body: the body.
        check: raises unless names, dtypes and shapes are right; called before a tensor exists.
        dtypes: tensor name -> the dtype that JSON numbers become.

    Raises:
        MalformedBody: the bytes are not what their content type says.
        InvalidBatch: whatever `check` refuses.
    """
    with phases.measure("decode"):
        if body.media_type == JSON:
            # number by number in Python: slow, so not on the event loop
            return await asyncio.to_thread(_from_json, body.data, check, dtypes)
        return decode(body.data, check)[0]


def check_parameters(current: Tensors, given: Mapping[str, Described]) -> None:
    """Refuse parameters whose names, dtypes or shapes are not those of the current ones.

    Raises:
        InvalidBatch: naming the first parameter at fault.
    """
    for name in [*current, *given]:
        expected = ParameterSpec.of(current[name]) if name in current else None
        found = given.get(name)
        if expected is None or found is None:
            state = "unknown" if expected is None else "missing"
            known = ", ".join(current)
            raise InvalidBatch(f"the parameter {name} is {state}", tensor=name, expected=known)
        if ParameterSpec(tuple(found.shape), dtype_name(found.dtype)) != expected:
            message = f"{name} is {dtype_name(found.dtype)} {list(found.shape)}"
            wanted = f"{expected.dtype} {list(expected.shape)}"
            raise InvalidBatch(message, tensor=name, expected=wanted)


def parse_json(data: bytes | bytearray) -> dict[str, Any]:
    """Return a JSON object.

    Raises:
        MalformedBody: not JSON, not an object, it holds NaN or Infinity, which JSON has not, or an
            object whose names are not Unicode, or not unique.
    """
    try:
        document = json.loads(
            data, parse_constant=_refuse_constant, object_pairs_hook=_unique_members
        )
    except (ValueError, RecursionError) as error:
        raise MalformedBody(f"the body is not JSON: {error}") from error
    if not isinstance(document, dict):
        raise MalformedBody("the body is JSON, but not an object")
    return document


def _sample_bytes(spec: SampleSpec) -> int:
    return math.prod(spec.shape) * max(dtype.itemsize for dtype in spec.dtypes)


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a JSON number")


def _unique_members(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    members = dict(pairs)
    if len(members) < len(pairs):
        raise ValueError("an object has two members of one name")
    if not all(map(_is_unicode, members)):
        raise ValueError("a name is not Unicode")
    return members


def _is_unicode(name: str) -> bool:
    return not any("\ud800" <= character <= "\udfff" for character in name)


def _from_json(data: bytearray, check: LayoutCheck, dtypes: Mapping[str, torch.dtype]) -> Tensors:
    flat = {name: _flatten(name, value) for name, value in parse_json(data).items()}
    check(
        {name: Layout(dtypes.get(name, torch.float32), shape) for name, (shape, _) in flat.items()}
    )
    return {
        name: _tensor(name, numbers, dtypes[name]).view(shape)
        for name, (shape, numbers) in flat.items()
    }


def _flatten(name: str, value: object) -> tuple[tuple[int, ...], list[Any]]:
    """Return the shape of nested lists, and their numbers in order."""
    shape: list[int] = []
    items: list[Any] = [value]
    while items and isinstance(items[0], list):
        width = len(items[0])
        if not all(isinstance(item, list) and len(item) == width for item in items):
            raise InvalidBatch(f"the lists of {name} differ in length", tensor=name)
        shape.append(width)
        items = [inner for item in items for inner in item]
    return tuple(shape), items


def _tensor(name: str, numbers: list[Any], dtype: torch.dtype) -> Tensor:
    allowed = (int, float) if dtype.is_floating_point else (int,)
    wrong = [number for number in numbers if type(number) not in allowed]
    if wrong:
        found = f"{name} holds {json.dumps(wrong[0]):.40}"
        raise InvalidBatch(found, tensor=name, expected=dtype_name(dtype))
    try:
        return torch.tensor(numbers, dtype=dtype)
    except (OverflowError, RuntimeError, ValueError) as error:
        message = f"a number of {name} is beyond {dtype_name(dtype)}"
        raise InvalidBatch(message, tensor=name, expected=dtype_name(dtype)) from error
