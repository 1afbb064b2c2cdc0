"""Bodies that were good once: safetensors with a few things wrong, each made from a seed alone."""

import json
import math
import struct
from collections.abc import Callable
from random import Random
from typing import Any

from tests.server.tiny import CLASSES, FEATURES, MAX_BATCH

Header = dict[str, Any]

NUMBERS = (
    *(0, 1, 2, 3, 4, 7, 8, 12, 16, 17, 24, 255, 2**16, 2**24, 10**9, 2**31, 2**32, 2**53, 2**62),
    *(2**63 - 1, 2**63, 2**64 - 1, 2**64, 2**64 + 8, 10**30, -1, -8, -(2**63)),
)
VALUES = (*NUMBERS, 0.0, 1.5, 1e300, True, False, None, "", "3", [], [1], {}, "F32")
DTYPES = ("BOOL", "U8", "I8", "I16", "I32", "I64", "F16", "BF16", "F32", "F64", "U16", "U32", "U64",
          "F8_E4M3", "F8_E5M2", "F4", "C64", "f32", "", "F32\0", None, 1)  # fmt: skip
WIDTHS = {"BOOL": 1, "U8": 1, "I8": 1, "I16": 2, "I32": 4, "I64": 8, "F16": 2, "BF16": 2, "F32": 4,
          "F64": 8}  # fmt: skip
NAMES = ("inputs", "targets", "weight", "bias", "", "__metadata__", "Inputs", "inputs\0", "../../x",
         "a\r\nb", "\u202e", "😀", "x" * 300)  # fmt: skip
FLOATS = (float("nan"), float("inf"), float("-inf"), 3.4e38, -3.4e38, 1e-45, 0.0, -0.0)
LABELS = (-1, CLASSES, 2**31, 2**62, -(2**63), 255)
NOISE = (b"\0", b"\xff", b"\xc3", b"\xed\xa0\x80", b"{", b"}", b"[", b'"', b",", b"NaN", b"\\ud800",
         b"1e9", b"-", b"\r\n", b"\xef\xbb\xbf")  # fmt: skip


def frame(header: Header | bytes, data: bytes) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data


def good_batch(rng: Random) -> tuple[Header, bytes]:
    """A legal batch, its header padded and its metadata there or not."""
    samples = rng.randint(1, MAX_BATCH)
    inputs = [rng.uniform(-2, 2) for _ in range(samples * FEATURES)]
    labels = [rng.randrange(CLASSES) for _ in range(samples)]
    data = struct.pack(f"<{len(inputs)}f", *inputs) + struct.pack(f"<{samples}q", *labels)
    middle = 4 * len(inputs)
    header: Header = {"__metadata__": {"sent by": "fuzz"}} if rng.random() < 0.3 else {}
    header["inputs"] = _entry("F32", [samples, FEATURES], 0, middle)
    header["targets"] = _entry("I64", [samples], middle, len(data))
    return header, data


def good_parameters(rng: Random) -> tuple[Header, bytes]:
    """Parameters of the model `tiny`."""
    weights, biases = CLASSES * FEATURES, CLASSES
    data = struct.pack(f"<{weights + biases}f", *(rng.gauss(0, 1) for _ in range(weights + biases)))
    weight = _entry("F32", [CLASSES, FEATURES], 0, 4 * weights)
    return {"weight": weight, "bias": _entry("F32", [CLASSES], 4 * weights, len(data))}, data


def well_formed(rng: Random) -> tuple[Header, bytes]:
    """Tensors of any dtypes, shapes and values, laid out as the format says."""
    header: Header = {}
    size = 0
    for name in rng.choice([("inputs", "targets"), ("weight", "bias"), rng.sample(NAMES, 3)]):
        if name == "__metadata__":
            continue
        dtype = rng.choice(list(WIDTHS))
        samples = rng.choice([0, 1, 2, 16, 17])
        shape = rng.choice([[samples], [samples, FEATURES], [samples, 1, FEATURES], []])
        start, size = size, size + WIDTHS[dtype] * math.prod(shape)
        header[name] = _entry(dtype, shape, start, size)
    return header, bytes(rng.choice([0, 1]) for _ in range(size))


def _entry(dtype: str, shape: list[int], start: int, end: int) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}


# each takes a header and the data, and changes the header in place; the data it returns


def change_shape(rng: Random, header: Header, data: bytes) -> bytes:
    shape = _some(rng, header)["shape"]
    _change_list(rng, shape)
    return data


def change_offsets(rng: Random, header: Header, data: bytes) -> bytes:
    _change_list(rng, _some(rng, header)["data_offsets"])
    return data


def shift_offsets(rng: Random, header: Header, data: bytes) -> bytes:
    entry, by = _some(rng, header), rng.choice([-8, -4, -1, 1, 4, 8, len(data)])
    entry["data_offsets"] = [_plus(offset, by) for offset in entry["data_offsets"]]
    return data


def change_dtype(rng: Random, header: Header, data: bytes) -> bytes:
    _some(rng, header)["dtype"] = rng.choice(DTYPES)
    return data


def change_member(rng: Random, header: Header, data: bytes) -> bytes:
    entry = _some(rng, header)
    name = rng.choice(["dtype", "shape", "data_offsets", "strides", "__metadata__"])
    if name in entry and rng.random() < 0.5:
        del entry[name]
    else:
        entry[name] = rng.choice(VALUES)
    return data


def rename(rng: Random, header: Header, data: bytes) -> bytes:
    name = rng.choice(list(header))
    header[rng.choice(NAMES)] = header.pop(name)
    return data


def drop(rng: Random, header: Header, data: bytes) -> bytes:
    del header[rng.choice(list(header))]
    return data


def add(rng: Random, header: Header, data: bytes) -> bytes:
    """A further tensor that fits in behind the others: of zero bytes, or of some."""
    shape = rng.choice([[0], [0, 10**9], [0, 2**62], [2], [1, 1, 1, 1], [], [1] * 70])
    size = 0 if 0 in shape else 2 if shape == [2] else 1
    header[rng.choice(NAMES)] = _entry(
        rng.choice(["BOOL", "U8", "I8"]), shape, len(data), len(data) + size
    )
    return data + bytes(rng.choice([0, 1, 2, 255]) for _ in range(size))


def cast(rng: Random, header: Header, data: bytes) -> bytes:
    """Another dtype of the same width, so that the layout is sound and only the schema is not."""
    entry = _some(rng, header)
    same = {"F32": ["I32", "U32", "F16"], "I64": ["F64", "U64", "BOOL"]}
    entry["dtype"] = rng.choice(same.get(str(entry.get("dtype")), ["U8"]))
    return data


def reshape(rng: Random, header: Header, data: bytes) -> bytes:
    """Another shape of the same size."""
    entry = _some(rng, header)
    shape = entry["shape"]
    if isinstance(shape, list) and all(type(axis) is int for axis in shape):
        rng.shuffle(shape)
        shape.insert(rng.randint(0, len(shape)), 1)
    return data


def change_metadata(rng: Random, header: Header, data: bytes) -> bytes:
    header["__metadata__"] = rng.choice([{"a": rng.choice(VALUES)}, rng.choice(VALUES)])
    return data


def poison_floats(rng: Random, header: Header, data: bytes) -> bytes:
    return _overwritten(rng, data, struct.pack("<f", rng.choice(FLOATS)), 4)


def poison_labels(rng: Random, header: Header, data: bytes) -> bytes:
    label = struct.pack("<q", rng.choice(LABELS))
    return data[:-8] + label if len(data) >= 8 else data


def append(rng: Random, header: Header, data: bytes) -> bytes:
    return data + rng.randbytes(rng.choice([1, 4, 8, 64]))


def shorten(rng: Random, header: Header, data: bytes) -> bytes:
    return data[: max(0, len(data) - rng.choice([1, 4, 8, 64]))]


STRUCTURED: tuple[Callable[[Random, Header, bytes], bytes], ...] = (
    change_shape, change_offsets, shift_offsets, change_dtype, change_member, rename, drop, add,
    cast, reshape, change_metadata, poison_floats, poison_labels, append, shorten,
)  # fmt: skip
"""What can be done to a body while its header is still an object."""


def flip_bits(rng: Random, body: bytearray) -> None:
    for _ in range(rng.choice([1, 1, 1, 2, 8])):
        if body:
            body[rng.randrange(len(body))] ^= 1 << rng.randrange(8)


def flip_in_the_header(rng: Random, body: bytearray) -> None:
    end = min(len(body), 8 + int.from_bytes(body[:8], "little"))
    if end > 8:
        body[rng.randrange(8, end)] ^= 1 << rng.randrange(8)


def lie_of_the_length(rng: Random, body: bytearray) -> None:
    true = int.from_bytes(body[:8], "little")
    near = true + rng.randint(-9, 9)
    claimed = rng.choice([near, near, near, rng.getrandbits(64), *NUMBERS])
    body[:8] = (claimed % 2**64).to_bytes(8, "little")


def truncate(rng: Random, body: bytearray) -> None:
    del body[rng.randint(0, len(body)) :]


def insert_noise(rng: Random, body: bytearray) -> None:
    """Noise in the header, whose length is kept true."""
    noise = rng.choice(NOISE) * rng.choice([1, 1, 1, 50])
    end = min(len(body), 8 + int.from_bytes(body[:8], "little"))
    at = rng.randint(min(8, len(body)), max(8, end))
    body[at:at] = noise
    _remeasure(body, len(noise))


def nest(rng: Random, body: bytearray) -> None:
    """A value in the header becomes a deep nest of lists or objects."""
    depth = rng.choice([5, 100, 1000, 20_000])
    opening, closing = rng.choice([(b"[", b"]"), (b'{"a":', b"}")])
    bomb = opening * depth + (b"1" + closing * depth if rng.random() < 0.5 else b"")
    at = body.find(b":", 8) + 1
    if at:
        body[at:at] = bomb + b","
        _remeasure(body, len(bomb) + 1)


def repeat_a_part(rng: Random, body: bytearray) -> None:
    start = rng.randint(0, len(body))
    part = bytes(body[start : start + rng.choice([1, 8, 40])])
    body[start:start] = part
    if start >= 8 and rng.random() < 0.5:
        _remeasure(body, len(part))


def repeat_a_name(rng: Random, body: bytearray) -> None:
    """Names and members twice: the header begins again behind its first brace."""
    end = min(len(body), 8 + int.from_bytes(body[:8], "little"))
    inner = bytes(body[9 : max(9, end - 1)])
    body[9:9] = inner + b","
    _remeasure(body, len(inner) + 1)


def write_another_number(rng: Random, body: bytearray) -> None:
    """One digit of the header becomes another number, of any size."""
    end = min(len(body), 8 + int.from_bytes(body[:8], "little"))
    digits = [at for at in range(8, end) if body[at : at + 1].isdigit()]
    if digits:
        at, text = rng.choice(digits), str(rng.choice(NUMBERS)).encode()
        body[at : at + 1] = text
        _remeasure(body, len(text) - 1)


def pad(rng: Random, body: bytearray) -> None:
    """White space where JSON allows it, and where the format does not."""
    end = min(len(body), 8 + int.from_bytes(body[:8], "little"))
    space = rng.choice([b" ", b"\n", b"\t", b" " * 64])
    at = rng.choice([min(8, len(body)), end])
    body[at:at] = space
    _remeasure(body, len(space))


RAW: tuple[Callable[[Random, bytearray], None], ...] = (
    flip_bits, flip_in_the_header, lie_of_the_length, truncate, insert_noise, nest, repeat_a_part,
    repeat_a_name, write_another_number, pad,
)  # fmt: skip
"""What can be done to a body's bytes."""


def mutated(rng: Random) -> tuple[bytes, tuple[str, ...]]:
    """Return a body with a few things done to it, and what it was and what these were."""
    seed = rng.choice((good_batch, good_batch, good_batch, good_parameters, well_formed))
    header, data = seed(rng)
    done = [seed.__name__]
    structured = rng.choice([0, 0, 1, 2] if seed is well_formed else [0, 1, 1, 2])
    for _ in range(structured):
        if header and all(isinstance(entry, dict) for entry in header.values()):
            change = rng.choice(STRUCTURED)
            data = change(rng, header, data)
            done.append(change.__name__)
    body = bytearray(frame(header, data))
    whole = structured or seed is well_formed
    for _ in range(rng.choice([0, 0, 1]) if whole else rng.choice([1, 1, 2])):
        mutation = rng.choice(RAW)
        mutation(rng, body)
        done.append(mutation.__name__)
    return bytes(body), tuple(done)


def _some(rng: Random, header: Header) -> Header:
    """One tensor's entry, whole: what an earlier change broke is made anew."""
    entry = header[rng.choice(list(header))]
    usual = _entry("F32", [1], 0, 4)
    for name, value in usual.items():
        if not isinstance(entry.get(name), type(value)):
            entry[name] = value
    return entry


def _change_list(rng: Random, numbers: list[Any]) -> None:
    value = rng.choice(VALUES if rng.random() < 0.3 else NUMBERS)
    what = rng.random()
    if what < 0.2:
        numbers.insert(rng.randint(0, len(numbers)), value)
    elif what < 0.4 and numbers:
        numbers.pop(rng.randrange(len(numbers)))
    elif what < 0.5:
        numbers.reverse()
    elif numbers:
        numbers[rng.randrange(len(numbers))] = value


def _overwritten(rng: Random, data: bytes, value: bytes, width: int) -> bytes:
    if len(data) < width:
        return data
    at = width * rng.randrange(len(data) // width)
    return data[:at] + value + data[at + len(value) :]


def _plus(value: object, by: int) -> object:
    return value + by if isinstance(value, int) else value


def _remeasure(body: bytearray, added: int) -> None:
    claimed = int.from_bytes(body[:8], "little") + added
    body[:8] = (claimed % 2**64).to_bytes(8, "little")
