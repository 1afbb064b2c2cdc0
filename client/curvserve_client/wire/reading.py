"""From bytes to tensors."""

import json
import math
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import Any, NoReturn

import torch
from torch import Tensor

from ..errors import MalformedBody
from .layout import DTYPES, MAX_HEADER, METADATA, Buffer, TensorInfo

_MEMBERS = {"dtype", "shape", "data_offsets"}
_MAX_AXES = 64
_MAX_EMPTY = 2**24
_MAX_NUMBER = 2**63 - 1
_USUAL_HEADER = 4096  # bytes; the batches of a loop have the same one again and again


def read_header(body: Buffer) -> tuple[dict[str, TensorInfo], dict[str, str]]:
    """Read and check a body's header; no tensor is made, the data are not looked at.

    Args:
        body: the whole body.

    Returns:
        name -> info in the order of the data, and the metadata.

    Raises:
        MalformedBody: the header is not what the format says, or does not cover the body exactly.
    """
    view = memoryview(body).cast("B")
    offset = 8 + _header_length(view)
    header, size = bytes(view[8:offset]), len(view)
    read = _read if offset <= _USUAL_HEADER else _read.__wrapped__
    infos, metadata = read(header, size)
    return dict(infos), dict(metadata)


def decode(
    body: Buffer, check: Callable[[Mapping[str, TensorInfo]], object] | None = None
) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Read a body's tensors as views of its bytes.

    The tensors share the body's memory and keep it alive: write to one and the body changes. Only a
    read-only body, or a tensor whose data are not aligned to its dtype, is copied, once.

    Args:
        body: the whole body.
        check: called with what the header says, before any tensor is made; raises to refuse.

    Returns:
        name -> tensor on the CPU, and the metadata.

    Raises:
        MalformedBody: as `read_header`, or a BOOL tensor holds a byte other than 0 and 1.
    """
    infos, metadata = read_header(body)
    if check is not None:
        check(infos)
    view = memoryview(body).cast("B")
    if view.readonly:
        view = memoryview(bytearray(view))
    address = torch.frombuffer(view, dtype=torch.uint8).data_ptr() if infos else 0
    return {name: _tensor(view, info, address) for name, info in infos.items()}, metadata


@lru_cache(64)
def _read(header: bytes, size: int) -> tuple[dict[str, TensorInfo], dict[str, str]]:
    """Return what a header says of a body of so many bytes."""
    offset = 8 + len(header)
    entries = _parse(header)
    metadata = _metadata(entries.pop(METADATA, {}))
    found = [_tensor_info(name, entry, offset) for name, entry in entries.items()]
    found.sort(key=lambda info: (info.start, info.end))
    _check_coverage(found, offset, size)
    return {info.name: info for info in found}, metadata


def _refuse(detail: str, tensor: str | None = None, expected: str | None = None) -> NoReturn:
    raise MalformedBody(detail, tensor=tensor and tensor[:80], expected=expected)


def _header_length(view: memoryview) -> int:
    if len(view) < 8:
        _refuse(f"{len(view)} bytes are too few: a body begins with its header's length in 8 bytes")
    size = int.from_bytes(view[:8], "little")
    if size > MAX_HEADER:
        _refuse(f"the header claims {size} bytes, at most {MAX_HEADER} are read")
    if size > len(view) - 8:
        _refuse(
            f"the header claims {size} bytes, the body has only {len(view) - 8} after its length"
        )
    return size


def _parse(header: bytes) -> dict[str, Any]:
    if header[:1] != b"{":
        _refuse("the header does not begin with '{'")
    try:
        text = str(header, "utf-8")
        parsed = json.loads(
            text, object_pairs_hook=_object, parse_constant=_constant, parse_int=_whole_number
        )
    except (ValueError, RecursionError) as error:
        raise MalformedBody(f"the header is not JSON: {error}") from error
    assert isinstance(parsed, dict)  # it begins with '{'
    return parsed


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    members: dict[str, Any] = {}
    for name, value in pairs:
        if name in members:
            _refuse(f"the header names {name!r:.80} twice")
        _check_text(name)
        members[name] = value
    return members


def _check_text(text: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise MalformedBody(f"the header has a string that is not Unicode: {text!r:.80}") from error


def _constant(name: str) -> NoReturn:
    _refuse(f"the header has {name}, which is not JSON")


def _whole_number(digits: str) -> int:
    # compared by length first: int() of very many digits is slow, and refused by Python itself
    if len(digits) > 19 or not 0 <= int(digits) <= _MAX_NUMBER or digits.startswith("-"):
        _refuse(f"the header has the number {digits:.24}, which is no size or offset")
    return int(digits)


def _metadata(value: object) -> dict[str, str]:
    if not isinstance(value, dict):
        _refuse(f"{METADATA} is not an object")
    for name, text in value.items():
        if not isinstance(text, str):
            _refuse(f"{METADATA} has {name!r:.80}, which is not a string")
        _check_text(text)
    return value


def _tensor_info(name: str, entry: object, offset: int) -> TensorInfo:
    if not isinstance(entry, dict) or set(entry) != _MEMBERS:
        _refuse(f"{name!r:.80} is not described by dtype, shape and data_offsets", name)
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in DTYPES:
        _refuse(f"{name!r:.80} has a dtype that does not travel", name, ", ".join(DTYPES))
    if not _is_whole_list(shape) or len(shape) > _MAX_AXES:
        _refuse(f"{name!r:.80} has no valid shape", name)
    if not _is_whole_list(offsets) or len(offsets) != 2:
        _refuse(f"{name!r:.80} has no valid data_offsets", name)
    _check_size(name, DTYPES[dtype], shape, offsets[1] - offsets[0])
    return TensorInfo(name, DTYPES[dtype], tuple(shape), offset + offsets[0], offset + offsets[1])


def _is_whole_list(value: object) -> bool:
    return isinstance(value, list) and all(type(number) is int for number in value)


def _check_size(name: str, dtype: torch.dtype, shape: Sequence[int], size: int) -> None:
    needed = math.prod(shape) * dtype.itemsize
    if needed != size:
        _refuse(
            f"{name!r:.80} needs {needed} bytes for its shape and dtype, and is given {size}", name
        )
    if needed == 0 and math.prod(axis for axis in shape if axis) > _MAX_EMPTY:
        _refuse(f"{name!r:.80} is empty, and its other axes are absurdly large", name)


def _check_coverage(infos: Sequence[TensorInfo], start: int, end: int) -> None:
    position = start
    for info in infos:
        if info.start != position:
            _refuse(f"the data of {info.name!r:.80} leave a gap, or overlap others", info.name)
        position = info.end
    if position != end:
        _refuse(f"the tensors take {position - start} bytes, the body has {end - start} for them")


def _tensor(view: memoryview, info: TensorInfo, address: int) -> Tensor:
    """Return one tensor of a body that begins at an address."""
    size, width = info.end - info.start, info.dtype.itemsize
    if not size:
        return torch.empty(info.shape, dtype=info.dtype)
    if info.dtype is not torch.bool and (address + info.start) % width == 0:
        found = torch.frombuffer(view, dtype=info.dtype, count=size // width, offset=info.start)
        return found.view(info.shape)
    data = torch.frombuffer(view, dtype=torch.uint8, count=size, offset=info.start)
    if info.dtype is torch.bool and bool((data > 1).any()):
        _refuse(f"{info.name!r:.80} is BOOL and has a byte other than 0 and 1", info.name)
    if data.data_ptr() % width:
        data = data.clone()
    return data.view(info.dtype).view(info.shape)
