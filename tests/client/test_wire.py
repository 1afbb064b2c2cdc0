"""The wire format: what is written is read again, without copies; what is hostile is refused."""

import gc
import json
import weakref

import pytest
import torch
from curvserve_client import wire
from curvserve_client.errors import MalformedBody
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from .bodies import NAMED_TENSORS, TEXT, all_bits, body, entry, joined


@given(NAMED_TENSORS, st.dictionaries(TEXT, TEXT, max_size=3))
def test_round_trip(sent: dict[str, Tensor], metadata: dict[str, str]) -> None:
    received, strings = wire.decode(joined(wire.encode(sent, metadata)))
    assert all_bits(received) == all_bits(sent)
    assert strings == metadata


@given(NAMED_TENSORS)
def test_what_is_written_is_aligned_and_measured(sent: dict[str, Tensor]) -> None:
    parts = wire.encode(sent)
    assert wire.length(parts) == len(joined(parts))
    infos, _ = wire.read_header(joined(parts))
    assert all(info.start % info.dtype.itemsize == 0 for info in infos.values())


def test_a_body_of_nothing() -> None:
    assert wire.decode(joined(wire.encode({}))) == ({}, {})


def test_encoding_does_not_copy() -> None:
    weight = torch.zeros(1000)
    _, part = wire.encode({"weight": weight})
    weight[7] = 1.0
    assert bytes(part[28:32]) == b"\x00\x00\x80\x3f"


def test_a_part_keeps_its_tensor_alive() -> None:
    weight = torch.full((1000,), 3.0)
    dead = weakref.ref(weight)
    part = wire.encode({"weight": weight})[1][4:]
    expected = bytes(part)
    del weight
    gc.collect()
    torch.zeros(1000)  # would take the memory
    assert bytes(part) == expected
    del part
    gc.collect()
    assert dead() is None


def test_decoding_does_not_copy() -> None:
    received = joined(wire.encode({"weight": torch.zeros(4)}))
    tensor = wire.decode(received)[0]["weight"]
    received[-4:] = b"\x00\x00\x80\x3f"
    assert tensor.tolist() == [0, 0, 0, 1]


def test_a_tensor_keeps_its_body() -> None:
    received = joined(wire.encode({"weight": torch.ones(4)}))
    tensor = wire.decode(received)[0]["weight"]
    with pytest.raises(BufferError):
        received.clear()
    assert tensor.sum() == 4


@pytest.mark.parametrize("shift", range(8))
def test_a_misaligned_body_is_read(shift: int) -> None:
    sent = {"a": torch.arange(3.0, dtype=torch.float64), "b": torch.arange(5)}
    received = bytearray(shift) + joined(wire.encode(sent))
    decoded, _ = wire.decode(memoryview(received)[shift:])
    assert all_bits(decoded) == all_bits(sent)
    assert all(tensor.data_ptr() % 8 == 0 for tensor in decoded.values())


def test_a_read_only_body_gives_writable_tensors() -> None:
    sent = bytes(joined(wire.encode({"weight": torch.ones(4)})))
    tensor = wire.decode(sent)[0]["weight"]
    tensor.zero_()
    assert wire.decode(sent)[0]["weight"].sum() == 4


def test_values_are_resolved_before_they_are_sent() -> None:
    negated = torch.tensor([1 + 2j]).conj().imag
    assert negated.is_neg()
    assert wire.decode(joined(wire.encode({"x": negated})))[0]["x"].item() == -2


def test_a_parameter_is_sent_as_its_value() -> None:
    parameter = torch.nn.Parameter(torch.ones(2))
    assert not wire.decode(joined(wire.encode({"p": parameter})))[0]["p"].requires_grad


def test_what_cannot_travel_is_refused_with_its_name() -> None:
    with pytest.raises(TypeError, match=r"'field' is torch\.complex64"):
        wire.encode({"field": torch.zeros(1, dtype=torch.complex64)})
    with pytest.raises(ValueError, match="__metadata__"):
        wire.encode({"__metadata__": torch.zeros(1)})
    with pytest.raises(TypeError, match="'version' is 3"):
        wire.encode({}, {"version": 3})  # type: ignore[dict-item]  # that it is refused is the claim
    with pytest.raises(ValueError, match="header takes"):
        wire.encode({}, {"note": "x" * wire.MAX_HEADER})


GOOD = {"x": entry()}
DATA = bytes(8)
DEEP = b'{"x":' + b"[" * 100_000
HOSTILE = {
    "nothing": bytearray(),
    "seven bytes": bytearray(7),
    "header longer than the body": bytearray((100).to_bytes(8, "little") + b"{}"),
    "header of 2**63 bytes": bytearray((2**63).to_bytes(8, "little") + b"{}"),
    "header over 8 MiB": body(b"{" + b" " * wire.MAX_HEADER + b"}"),
    "empty header": body(b""),
    "not JSON": body(b"{x}"),
    "not an object": body(b'["x"]'),
    "space first": body(b" {}"),
    "byte order mark": body(b"\xef\xbb\xbf{}"),
    "not UTF-8": body(b'{"\xff": 1}'),
    "something after the object": body(b"{} {}"),
    "zero byte after the object": body(b"{}\0"),
    "very deep": body(DEEP),
    "NaN": body(b'{"x":NaN}'),
    "half a surrogate in a name": body(b'{"__metadata__":{"\\ud800":""}}'),
    "half a surrogate in a value": body(b'{"__metadata__":{"a":"\\udfff"}}'),
    "metadata not an object": body({"__metadata__": []}),
    "metadata null": body({"__metadata__": None}),
    "metadata not a string": body({"__metadata__": {"version": 1}}),
    "a name twice": body(b'{"x":%b,"x":%b}' % ((json.dumps(entry()).encode(),) * 2), DATA),
    "a member twice": body(b'{"x":{"dtype":"F32","dtype":"F32"}}'),
    "entry not an object": body({"x": 3}),
    "a member missing": body({"x": {"dtype": "F32", "shape": [2]}}, DATA),
    "a member unknown": body({"x": entry() | {"order": "C"}}, DATA),
    "dtype unknown": body({"x": entry("F8_E4M3", [8])}, DATA),
    "dtype no string": body({"x": entry(["F32"])}, DATA),
    "shape no list": body({"x": entry(shape=2)}, DATA),
    "shape of floats": body({"x": entry(shape=[2.0])}, DATA),
    "shape of booleans": body({"x": entry("U8", [True, 8])}, DATA),
    "shape negative": body({"x": entry(shape=[-2])}, DATA),
    "shape minus zero": body(b'{"x":{"dtype":"U8","shape":[-0],"data_offsets":[0,0]}}'),
    "shape over 2**63": body({"x": entry(shape=[2**63])}, DATA),
    "shape that overflows to 8 bytes": body({"x": entry(shape=[2**62 + 1, 4])}, DATA),
    "shape of 5000 digits": body(b'{"x":{"dtype":"U8","shape":[%b]}}' % (b"9" * 5000)),
    "shape of 65 axes": body({"x": entry(shape=[1] * 64 + [2])}, DATA),
    "empty and huge": body({"x": entry(shape=[0, 10**9], offsets=[0, 0])}),
    "empty and beyond a stride": body({"x": entry(shape=[2**62, 2**62, 0], offsets=[0, 0])}),
    "size not the shape's": body({"x": entry(shape=[3])}, DATA),
    "offsets too few": body({"x": entry(offsets=[8])}, DATA),
    "offsets too many": body({"x": entry(offsets=[0, 8, 8])}, DATA),
    "offsets backwards": body({"x": entry(offsets=[8, 0])}, DATA),
    "offsets beyond the body": body({"x": entry(offsets=[8, 16])}, DATA),
    "a gap first": body({"x": entry(offsets=[8, 16])}, DATA * 2),
    "a gap between": body({"x": entry(), "y": entry(offsets=[16, 24])}, DATA * 3),
    "an overlap": body({"x": entry(), "y": entry(offsets=[4, 12])}, DATA + bytes(4)),
    "the same bytes twice": body({"x": entry(), "y": entry()}, DATA),
    "bytes left over": body(GOOD, DATA + b"\0"),
    "bytes missing": body(GOOD, DATA[:-1]),
    "bytes without tensors": body({}, DATA),
}


@pytest.mark.parametrize("hostile", HOSTILE.values(), ids=HOSTILE)
def test_a_hostile_body_is_refused(hostile: bytearray) -> None:
    with pytest.raises(MalformedBody):
        wire.read_header(hostile)
    with pytest.raises(MalformedBody):
        wire.decode(hostile)


def test_a_bool_of_two_is_refused() -> None:
    hostile = body({"mask": entry("BOOL", [3], [0, 3])}, b"\x01\x00\x02")
    with pytest.raises(MalformedBody, match="'mask' is BOOL") as caught:
        wire.decode(hostile)
    assert caught.value.tensor == "mask"


def test_a_message_stays_short() -> None:
    with pytest.raises(MalformedBody) as caught:
        wire.read_header(body({"x" * 10**6: entry("?")}, DATA))
    assert len(str(caught.value)) < 400
    assert len(caught.value.tensor or "") < 400


def test_every_prefix_of_a_body_is_refused() -> None:
    whole = joined(wire.encode({"a": torch.ones(2), "b": torch.tensor([True])}, {"version": "1"}))
    for size in range(len(whole)):
        with pytest.raises(MalformedBody):
            wire.decode(whole[:size])


@given(st.binary(max_size=64))
def test_noise_is_refused_and_never_crashes(noise: bytes) -> None:
    try:
        wire.decode(body(b"{" + noise))
    except MalformedBody:
        return
    assert json.loads(b"{" + noise) in ({}, {"__metadata__": {}})
