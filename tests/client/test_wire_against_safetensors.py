"""The safetensors package as the oracle: it reads what we write, we read what it writes.

What it refuses, we refuse; where we refuse more, it is for one of the reasons of `STRICTER`.
"""

import json

import safetensors
import torch
from curvserve_client import wire
from curvserve_client.errors import MalformedBody
from hypothesis import event, given, settings
from hypothesis import strategies as st
from safetensors.torch import load, save
from torch import Tensor

from .bodies import NAMED_TENSORS, STRICTER, TEXT, all_bits, body, joined


@given(NAMED_TENSORS, st.dictionaries(TEXT, TEXT, max_size=3))
def test_it_reads_what_we_write(sent: dict[str, Tensor], metadata: dict[str, str]) -> None:
    received = load(bytes(joined(wire.encode(sent, metadata))))
    assert all_bits(received) == all_bits(sent)


@given(NAMED_TENSORS, st.dictionaries(TEXT, TEXT, max_size=3))
def test_we_read_what_it_writes(sent: dict[str, Tensor], metadata: dict[str, str]) -> None:
    ready = {name: tensor.contiguous() for name, tensor in sent.items()}
    # its version 0.8 writes broken JSON for no tensors and {}, so no metadata are None there
    received, strings = wire.decode(bytearray(save(ready, metadata or None)))
    assert all_bits(received) == all_bits(sent)
    assert strings == metadata


NUMBERS = st.one_of(
    st.integers(0, 4),
    st.sampled_from(
        [8, 16, -1, 2**31, 2**32, 2**62, 2**63, 2**64, 2**64 + 2, 2.0, True, None, "2"]
    ),
)
DTYPES = st.sampled_from([*wire.DTYPES, "F8_E4M3", "U16", "U32", "U64", "C64", "f32", "", None, 1])
LISTS = st.one_of(st.lists(NUMBERS, max_size=3), NUMBERS)
ENTRIES = st.fixed_dictionaries(
    {"dtype": DTYPES, "shape": LISTS, "data_offsets": LISTS}, optional={"more": LISTS}
)
FITTING = st.builds(
    lambda dtype, shape: {"dtype": dtype, "shape": shape},
    st.sampled_from(list(wire.DTYPES)),
    st.lists(st.integers(0, 3), max_size=3),
)


@st.composite
def layouts(draw: st.DrawFn) -> tuple[dict[str, object], int]:
    """Entries that fit one another, and how many bytes they take."""
    entries: dict[str, object] = {}
    position = 0
    for name in draw(st.lists(TEXT, unique=True, max_size=3)):
        found = draw(FITTING)
        size = torch.empty(found["shape"], dtype=wire.DTYPES[found["dtype"]], device="meta").nbytes
        entries[name] = found | {"data_offsets": [position, position + size]}
        position += size
    return entries, position


FLAWS = ["none", "entry", "metadata", "before", "after", "size", "byte"]


@st.composite
def bodies(draw: st.DrawFn) -> bytes:
    """A body that is right, or has one flaw at most."""
    entries, size = draw(layouts())
    flaw = draw(st.sampled_from(FLAWS))
    if flaw == "entry":
        entries[draw(TEXT)] = draw(ENTRIES)
    if flaw == "metadata":
        strings = st.dictionaries(TEXT, st.one_of(TEXT, NUMBERS), max_size=2)
        entries["__metadata__"] = draw(st.one_of(strings, NUMBERS))
    text = json.dumps(entries, ensure_ascii=draw(st.booleans())).encode()
    if flaw == "before":
        text = draw(st.sampled_from([b" ", b"\n", b"[", b"\0"])) + text
    if flaw == "after":
        text += draw(st.sampled_from([b"   ", b"\n", b"\0", b"}"]))
    size += draw(st.integers(-2, 2)) if flaw == "size" else 0
    made = body(text, bytes([1]) * size)
    if flaw == "byte":
        made[draw(st.integers(0, len(made) - 1))] = draw(st.integers(0, 255))
    return bytes(made)


def refusal(made: bytes) -> str | None:
    try:
        wire.decode(bytearray(made))
    except MalformedBody as error:
        return error.detail
    return None


def theirs(made: bytes) -> bool:
    try:
        safetensors.deserialize(made)
    except safetensors.SafetensorError:
        return False
    return True


@settings(max_examples=1000)
@given(bodies())
def test_we_refuse_what_it_refuses_and_little_more_and_read_the_same(made: bytes) -> None:
    reason, accepted = refusal(made), theirs(made)
    event(f"they {'accept' if accepted else 'refuse'}, we {'refuse' if reason else 'accept'}")
    if not accepted:
        assert reason is not None
    elif reason is not None:
        assert any(known in reason for known in STRICTER), reason
    else:
        assert all_bits(wire.decode(bytearray(made))[0]) == all_bits(load(made))
