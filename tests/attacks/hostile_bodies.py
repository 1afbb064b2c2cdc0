"""Hostile bodies for the model `tiny`, and what each must be answered.

A body lies in `bodies/` as the bytes that travel; `python -m tests.attacks.make` writes them.
"""

import json
from dataclasses import dataclass
from typing import Any

from curvserve_client.wire import MEDIA_TYPE

JSON = "application/json"


@dataclass(frozen=True)
class Attack:
    """A body, and its answer.

    Attributes:
        body: the bytes.
        code: the problem that must be answered.
        says: words of its detail.
        tensor: the tensor that it must name, where it must name one.
        media_type: the Content-Type that it is sent with.
    """

    body: bytes
    code: str
    says: str
    tensor: str | None = None
    media_type: str = MEDIA_TYPE


def framed(header: bytes | dict[str, Any], data: bytes = b"", claimed: int | None = None) -> bytes:
    """A safetensors body: the header's length, or a claimed one, the header, the data."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    size = len(text) if claimed is None else claimed
    return size.to_bytes(8, "little") + text + data


def entry(dtype: object, shape: object, start: object, end: object) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}


INPUTS = entry("F32", [2, 3], 0, 24)
TARGETS = entry("I64", [2], 24, 40)
DATA = bytes(24) + (1).to_bytes(8, "little") + (2).to_bytes(8, "little")
GOOD = {"inputs": INPUTS, "targets": TARGETS}
NAN, INFINITY = b"\x00\x00\xc0\x7f", b"\x00\x00\x80\x7f"
PICKLE = "cos\nsystem\n(S'touch /tmp/taken'\ntR."
"""What would run a command, were anything here unpickled."""


def tensors(data: bytes = DATA, **changed: object) -> bytes:
    """The good batch, with other entries or other data; an entry of None is left out."""
    header = {name: value for name, value in (GOOD | changed).items() if value is not None}
    return framed(header, data)


def malformed(body: bytes, says: str, tensor: str | None = None) -> Attack:
    return Attack(body, "malformed_body", says, tensor)


def misfit(body: bytes, says: str, tensor: str) -> Attack:
    return Attack(body, "invalid_batch", says, tensor)


def document(text: str | bytes, code: str, says: str, tensor: str | None = None) -> Attack:
    body = text if isinstance(text, bytes) else text.encode()
    return Attack(body, code, says, tensor, JSON)


HEADERS = {
    "nothing": malformed(b"", "0 bytes are too few"),
    "seven_bytes": malformed(b"\x10" + bytes(6), "7 bytes are too few"),
    "header_of_2_63_bytes": malformed(framed(GOOD, DATA, 2**63), "claims 9223372036854775808"),
    "header_of_2_64_bytes_less_1": malformed(framed(GOOD, DATA, 2**64 - 1), "claims 184467"),
    "header_longer_than_the_body": malformed(framed(GOOD, DATA, 4096), "the body has only"),
    "header_shorter_than_it_is": malformed(framed(GOOD, DATA, 40), "not JSON"),
    "header_of_no_bytes": malformed(framed(GOOD, DATA, 0), "does not begin with '{'"),
    "header_is_a_list": malformed(framed(b"[]"), "does not begin with '{'"),
    "header_is_not_utf_8": malformed(framed(b'{"\xff\xfe": 1}'), "not JSON"),
    "header_with_a_nul": malformed(framed(b'{"a\x00b": 1}'), "not JSON"),
    "header_with_a_lone_surrogate": malformed(framed(rb'{"\ud800": 1}'), "not Unicode"),
    "header_with_infinity": malformed(framed(b'{"a": Infinity}'), "not JSON"),
    "bomb_of_lists": malformed(framed(b'{"a":' + b"[" * 50_000), "not JSON"),
    "bomb_of_objects": malformed(framed(b'{"a":' * 10_000), "not JSON"),
    "number_of_50000_digits": malformed(framed(b'{"a":' + b"9" * 50_000 + b"}"), "the number 999"),
    "duplicate_names": malformed(
        framed(b'{"inputs":1,"inputs":2}'), "names 'inputs' twice"
    ),
    "duplicate_members": malformed(
        framed(b'{"inputs":{"dtype":"F32","dtype":"I64"}}'), "names 'dtype' twice"
    ),
    "metadata_of_numbers": malformed(
        tensors(__metadata__={"version": 1}), "which is not a string"
    ),
    "metadata_nested": malformed(tensors(__metadata__={"a": {"b": "c"}}), "is not a string"),
    "metadata_is_a_list": malformed(tensors(__metadata__=[]), "is not an object"),
}  # fmt: skip

LAYOUTS = {
    "offsets_beyond_the_end": malformed(
        tensors(targets=entry("I64", [3], 24, 48)), "the tensors take 48 bytes"
    ),
    "offsets_reversed": malformed(
        tensors(targets=entry("I64", [2], 40, 24)), "is given -16", "targets"
    ),
    "offsets_negative": malformed(
        tensors(targets=entry("I64", [2], -16, 0)), "the number -16"
    ),
    "offsets_overlap": malformed(
        tensors(DATA[:24], targets=entry("I64", [2], 8, 24)), "leave a gap, or overlap", "targets"
    ),
    "offsets_with_a_gap": malformed(
        tensors(DATA + bytes(8), targets=entry("I64", [2], 32, 48)), "leave a gap", "targets"
    ),
    "offsets_of_2_63": malformed(
        tensors(targets=entry("I64", [2], 2**63, 2**63 + 16)), "the number 9223372036854775808"
    ),
    "offsets_are_fractions": malformed(
        tensors(targets=entry("I64", [2], 24.0, 40.0)), "no valid data_offsets", "targets"
    ),
    "bytes_after_the_tensors": malformed(tensors(DATA + b"PK\x03\x04"), "the body has 44"),
    "bytes_missing": malformed(tensors(DATA[:-1]), "the body has 39"),
    "shape_overflows_64_bits": malformed(
        tensors(inputs=entry("F32", [2**32, 2**32], 0, 24)), "needs 73786976294838206464", "inputs"
    ),
    "shape_wraps_to_the_right_size": malformed(
        tensors(inputs=entry("F32", [2**62 + 6], 0, 24)), "needs 18446744073709551640", "inputs"
    ),
    "shape_negative": malformed(tensors(inputs=entry("F32", [-2, -3], 0, 24)), "the number -2"),
    "shape_of_truths": malformed(
        tensors(inputs=entry("F32", [True, 6], 0, 24)), "no valid shape", "inputs"
    ),
    "shape_of_1000_axes": malformed(
        tensors(inputs=entry("F32", [1] * 1000 + [6], 0, 24)), "no valid shape", "inputs"
    ),
    "shape_of_nothing_times_10_9": malformed(
        tensors(DATA[24:], inputs=entry("F32", [0, 10**9], 0, 0), targets=entry("I64", [2], 0, 16)),
        "absurdly large", "inputs",
    ),
    "dtype_unknown": malformed(
        tensors(inputs=entry("F8_E4M3", [24], 0, 24)), "a dtype that does not travel", "inputs"
    ),
    "dtype_is_an_object": malformed(
        tensors(inputs=entry({"F32": 1}, [2, 3], 0, 24)), "does not travel", "inputs"
    ),
    "member_too_many": malformed(
        tensors(inputs=INPUTS | {"stride": [0, 0]}), "not described by", "inputs"
    ),
    "member_missing": malformed(
        tensors(inputs={"dtype": "F32", "shape": [2, 3]}), "not described by", "inputs"
    ),
    "bool_of_two": misfit(
        tensors(bytes([0, 1, 2, 1, 0, 1]) + DATA[24:],
                inputs=entry("BOOL", [2, 3], 0, 6), targets=entry("I64", [2], 6, 22)),
        "inputs is bool", "inputs",
    ),
}  # fmt: skip

BATCHES = {
    "wrong_dtype": misfit(
        tensors(DATA + bytes(24), inputs=entry("F64", [2, 3], 0, 48),
                targets=entry("I64", [2], 48, 64)), "inputs is float64 [2, 3]", "inputs"),
    "wrong_dtype_of_labels": misfit(
        tensors(targets=entry("F64", [2], 24, 40)), "targets is float64", "targets"),
    "wrong_shape": misfit(
        tensors(inputs=entry("F32", [3, 2], 0, 24)), "is float32 [3, 2]", "inputs"),
    "wrong_rank": misfit(tensors(inputs=entry("F32", [6], 0, 24)), "is float32 [6]", "inputs"),
    "no_axes": misfit(
        tensors(bytes(4) + DATA[24:], inputs=entry("F32", [], 0, 4),
                targets=entry("I64", [2], 4, 20)), "is float32 []", "inputs"),
    "no_samples": misfit(
        framed({"inputs": entry("F32", [0, 3], 0, 0), "targets": entry("I64", [0], 0, 0)}),
        "a batch of 0 samples", "inputs"),
    "too_many_samples": misfit(
        framed({"inputs": entry("F32", [17, 3], 0, 204), "targets": entry("I64", [17], 204, 340)},
               bytes(340)), "a batch of 17 samples", "inputs"),
    "fewer_targets_than_inputs": misfit(
        tensors(DATA[:32], targets=entry("I64", [1], 24, 32)), "2 inputs, 1 targets", "targets"),
    "no_targets": misfit(tensors(DATA[:24], targets=None), "targets", "targets"),
    "a_tensor_too_many": misfit(
        tensors(DATA + bytes(4), weight=entry("F32", [1], 40, 44)), "weight", "weight"),
    "a_tensor_named_like_a_path": misfit(
        tensors(DATA + bytes(4), **{"../../etc/passwd": entry("F32", [1], 40, 44)}),
        "../../etc/passwd", "../../etc/passwd"),
    "a_tensor_named_with_line_breaks": misfit(
        tensors(DATA + bytes(4), **{"a\r\nSet-Cookie: b": entry("F32", [1], 40, 44)}),
        "Set-Cookie", "a\r\nSet-Cookie: b"),
    "nan": misfit(tensors(NAN + DATA[4:]), "inputs of sample 0", "inputs"),
    "infinity": misfit(tensors(DATA[:20] + INFINITY + DATA[24:]), "inputs of sample 1", "inputs"),
    "label_above": misfit(
        tensors(DATA[:32] + (3).to_bytes(8, "little")), "targets of sample 1", "targets"),
    "label_below": misfit(tensors(DATA[:32] + b"\xff" * 8), "targets of sample 1", "targets"),
    "label_far_above": misfit(
        tensors(DATA[:32] + (2**62).to_bytes(8, "little")), "targets of sample 1", "targets"),
    "pickle_in_the_metadata": misfit(
        tensors(DATA[:32] + b"\xff" * 8, __metadata__={"model": PICKLE}),
        "targets of sample 1", "targets"),
}  # fmt: skip

WHOLE = '{"inputs": [[1, 2, 3], %s], "targets": [0, 1]}'

DOCUMENTS = {
    "json_cut_short": document('{"inputs": [[1, 2,', "malformed_body", "not JSON"),
    "json_list": document("[[1, 2, 3]]", "malformed_body", "not an object"),
    "json_not_text": document(b"\xff\xfe\xfd\xfc", "malformed_body", "not JSON"),
    "json_nan": document(WHOLE % "[1, 2, NaN]", "malformed_body", "NaN is not a JSON number"),
    "json_bomb": document('{"inputs": ' + "[" * 50_000, "malformed_body", "not JSON"),
    "json_of_50000_digits": document(WHOLE % f"[1, 2, {'9' * 50_000}]", "malformed_body", "JSON"),
    "json_of_900_axes": document(
        f'{{"inputs": {"[" * 900}1{"]" * 900}, "targets": [0]}}',
        "invalid_batch", "inputs is float32 [1, 1", "inputs"),
    "json_ragged": document(WHOLE % "[1, 2]", "invalid_batch", "differ in length", "inputs"),
    "json_too_large_for_the_dtype": document(
        WHOLE % "[1, 2, 1e39]", "invalid_batch", "inputs of sample 1", "inputs"),
    "json_number_without_end": document(
        WHOLE % "[1, 2, 1e999]", "invalid_batch", "inputs of sample 1", "inputs"),
    "json_integer_beyond_float": document(
        WHOLE % f"[1, 2, {10**400}]", "invalid_batch", "float32", "inputs"),
    "json_text_among_numbers": document(
        WHOLE % '[1, 2, "3"]', "invalid_batch", 'inputs holds "3"', "inputs"),
    "json_object_among_numbers": document(
        WHOLE % '[1, 2, {"__reduce__": []}]', "invalid_batch", "inputs holds", "inputs"),
    "json_label_beyond_int64": document(
        '{"inputs": [[1, 2, 3]], "targets": [9223372036854775808]}',
        "invalid_batch", "beyond int64", "targets"),
    "json_lone_surrogate": document(
        r'{"inputs": [[1, 2, 3]], "targets": [0], "\ud800": 1}', "malformed_body", "not Unicode"),
    "json_duplicate_names": document(
        '{"inputs": 1, "inputs": [[1, 2, 3]], "targets": [0]}', "malformed_body", "two members"),
}  # fmt: skip

ATTACKS: dict[str, Attack] = HEADERS | LAYOUTS | BATCHES | DOCUMENTS
"""Name of the file -> the attack."""
