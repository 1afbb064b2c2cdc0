"""Hostile requests, byte for byte, and what each must be answered.

Each is sent on a connection of its own, to a server of the model `tiny`, and nothing follows it.
"""

import gzip
import json
from dataclasses import dataclass

from curvserve_client.wire import MEDIA_TYPE

from tests.attacks.hostile_bodies import DATA, GOOD, JSON, framed
from tests.server.raw import request

REFUSED_BY_THE_PARSER = "Invalid HTTP request received."
"""What is no HTTP is answered in plain text, before there is a request that could be named."""

STEP, SESSIONS = "/v1/sessions/tiny/step", "/v1/sessions"
BODY = framed(GOOD, DATA)
CHUNKED = "transfer-encoding: chunked"
BREAK = "%0d%0aset-cookie:%20taken=1"


@dataclass(frozen=True)
class Attack:
    """A request, and its answer.

    Attributes:
        sent: the bytes.
        status: the answer's status; 0 where the connection is closed without one.
        code: the problem's code, or the parser's text; nothing where it is answered as any other.
        says: words of the problem's detail.
        close: whether the sender hangs up after it, without waiting for the answer.
        lacks: what must not stand in the head of the answer.
    """

    sent: bytes
    status: int
    code: str = ""
    says: str = ""
    close: bool = False
    lacks: str = "set-cookie"


def step(*headers: str, body: bytes = BODY, path: str = STEP, key: str = "attack") -> bytes:
    """A step whose own headers come first, so that one of them can stand for another."""
    mine = {line.partition(":")[0] for line in headers}
    usual = (f"content-type: {MEDIA_TYPE}", f"idempotency-key: {key}", "if-match: *")
    rest = [line for line in usual if line.partition(":")[0] not in mine]
    return request("POST", path, *headers, *rest, body=body)


def post(document: object, path: str = SESSIONS) -> bytes:
    return request("POST", path, f"content-type: {JSON}", body=json.dumps(document).encode())


def optim_step(text: str) -> bytes:
    path = "/v1/sessions/tiny/optim_step"
    return step(f"content-type: {JSON}", body=text.encode(), path=path)


def chunked(*pieces: bytes) -> bytes:
    return step(CHUNKED, body=b"") + b"".join(pieces)


def parser(sent: bytes) -> Attack:
    return Attack(sent, 400, REFUSED_BY_THE_PARSER)


FRAMING = {
    "chunk_longer_than_it_says": parser(chunked(b"4\r\n", BODY, b"\r\n0\r\n\r\n")),
    "chunk_of_no_number": parser(chunked(b"ten\r\n", BODY)),
    "chunk_of_a_negative_number": parser(chunked(b"-1\r\n", BODY)),
    "chunk_of_2_100": parser(chunked(b"f" * 25, b"\r\n", BODY)),
    "chunk_shorter_than_it_says": Attack(
        chunked(b"fffffff\r\n", BODY), 0, close=True),
    "chunks_without_an_end": Attack(chunked(b"4\r\nabcd\r\n"), 0, close=True),
    "body_of_100_mb_that_does_not_come": Attack(
        step("content-length: 100000000", body=b"") + b"ten bytes.", 413, "body_too_large"),
    "body_of_500_kb_that_does_not_come": Attack(
        step("content-length: 500000", body=b"") + b"ten bytes.", 0, close=True),
    "length_of_5000_digits": parser(step("content-length: " + "1" * 5000, body=b"")),
    "length_of_20_digits": parser(step("content-length: " + "9" * 20, body=b"")),
    "lengths_that_differ": parser(
        step("content-length: 10", "content-length: 20", body=b"") + BODY),
    "length_and_chunks": parser(
        step("content-length: 3", CHUNKED, body=b"") + b"2\r\nab\r\n0\r\n\r\n"),
    "transfer_encoding_gzip": parser(step("transfer-encoding: gzip, chunked", body=b"")),
    "no_length": Attack(step(body=b""), 411, "length_required"),
}  # fmt: skip

ENCODINGS = {
    "gzip": Attack(
        step("content-encoding: gzip", body=gzip.compress(BODY, mtime=0)),
        415, "unsupported_media_type", "gzip"),
    "gzip_that_is_not": Attack(
        step("content-encoding: gzip"), 415, "unsupported_media_type", "gzip"),
    "gzip_bomb_of_json": Attack(
        request("POST", SESSIONS, f"content-type: {JSON}", "content-encoding: gzip",
                body=gzip.compress(b" " * 10_000_000, mtime=0)),
        415, "unsupported_media_type", "gzip"),
    "content_type_twice": Attack(
        step(f"content-type: {MEDIA_TYPE}, {JSON}"), 415, "unsupported_media_type"),
    "content_type_pickle": Attack(
        step("content-type: application/x-pickle"), 415, "unsupported_media_type"),
}  # fmt: skip

NAMES = {
    "session_named_like_a_path": Attack(
        post({"model": "tiny", "name": "../../etc/passwd"}), 422, "invalid_request"),
    "session_named_dot_dot": Attack(post({"model": "tiny", "name": ".."}), 422, "invalid_request"),
    "session_named_with_a_nul": Attack(
        post({"model": "tiny", "name": "a\0b"}), 422, "invalid_request"),
    "session_named_with_line_breaks": Attack(
        post({"model": "tiny", "name": "a\r\nset-cookie: taken=1"}), 422, "invalid_request"),
    "session_named_with_a_line_break_behind": Attack(
        post({"model": "tiny", "name": "a\n"}), 422, "invalid_request"),
    "session_named_with_a_lone_surrogate": Attack(
        post({"model": "tiny", "name": "a\ud800"}), 422, "invalid_request"),
    "checkpoint_named_like_a_path": Attack(
        post({"name": "../../etc/passwd"}, "/v1/sessions/tiny/checkpoints"),
        422, "invalid_request"),
    "checkpoint_named_with_a_line_break_behind": Attack(
        post({"name": "a\n"}, "/v1/sessions/tiny/checkpoints"), 422, "invalid_request"),
    "checkpoint_of_a_path": Attack(
        post({"model": "tiny", "from_checkpoint": "tiny/../../../../etc/passwd"}),
        404, "unknown_checkpoint"),
    "checkpoint_with_a_nul": Attack(
        post({"model": "tiny", "from_checkpoint": "tiny/a\0b"}), 404, "unknown_checkpoint"),
    "model_named_like_a_path": Attack(
        post({"model": "../../etc/passwd"}), 404, "unknown_model"),
    "model_named_like_a_module": Attack(post({"model": "os:system"}), 404, "unknown_model"),
    "path_upwards": Attack(
        request("GET", "/v1/models/../../etc/passwd"), 404, "not_found"),
    "path_upwards_escaped": Attack(
        request("GET", "/v1/models/..%2f..%2fetc%2fpasswd"), 404, "not_found"),
    "path_upwards_escaped_twice": Attack(
        request("GET", "/v1/models/..%252f..%252fetc%252fpasswd"), 404, "unknown_model"),
    "path_of_a_checkpoint_upwards": Attack(
        request("GET", "/v1/sessions/tiny/checkpoints/..%5c..%5cetc"), 404, "unknown_checkpoint"),
    "path_of_a_checkpoint_with_a_nul": Attack(
        request("GET", "/v1/sessions/tiny/checkpoints/%00"), 404, "unknown_checkpoint"),
    "path_with_line_breaks": Attack(
        request("GET", f"/v1/sessions/{BREAK}"), 404, "unknown_session"),
    "path_of_a_checkpoint_with_line_breaks": Attack(
        request("GET", f"/v1/sessions/tiny/checkpoints/{BREAK}"), 404, "unknown_checkpoint"),
    "path_that_is_not_utf_8": Attack(request("GET", "/v1/sessions/%ff%fe"), 404, "unknown_session"),
    "path_with_raw_bytes": parser(request("GET", "/v1/sessions/\xff")),
}  # fmt: skip

HEADS = {
    "request_id_with_escaped_line_breaks": Attack(
        request("GET", "/nowhere", f"x-request-id: a{BREAK}"), 404, "not_found", lacks="%0d"),
    "request_id_with_a_bare_cr": parser(request("GET", "/livez", "x-request-id: a\rset-cookie: b")),
    "request_id_of_10000_letters": Attack(
        request("GET", "/nowhere", "x-request-id: " + "a" * 10_000),
        404, "not_found", lacks="aaaa"),
    "request_id_of_other_bytes": Attack(
        request("GET", "/nowhere", "x-request-id: \xe9\x85\xff"), 404, "not_found", lacks="\xe9"),
    "key_with_escaped_line_breaks": Attack(
        step(f"idempotency-key: a{BREAK} b"), 422, "invalid_request", "Idempotency-Key"),
    "key_with_a_nul": parser(step("idempotency-key: a\0b")),
    "key_of_other_bytes": Attack(
        step("idempotency-key: \xe9"), 422, "invalid_request", "Idempotency-Key"),
    "key_of_10000_letters": Attack(
        step("idempotency-key: " + "a" * 10_000), 422, "invalid_request", "Idempotency-Key"),
    "key_of_nothing": Attack(step("idempotency-key:"), 400, "missing_idempotency_key"),
    "if_match_of_5000_digits": Attack(
        step(f'if-match: "{"9" * 5000}"'), 412, "stale_version"),
    "if_match_of_5000_tags": Attack(
        step("if-match: " + '"9", ' * 5000 + '"9"'), 412, "stale_version"),
    "if_match_without_quotes": Attack(step("if-match: 0"), 422, "invalid_request"),
    "if_match_of_superscripts": Attack(step('if-match: "\xb2"'), 412, "stale_version"),
    "last_event_id_of_5000_digits": Attack(
        request("GET", "/v1/events", "last-event-id: " + "9" * 5000), 422, "invalid_request"),
    "last_event_id_negative": Attack(
        request("GET", "/v1/events", "last-event-id: -1"), 422, "invalid_request"),
    "header_folded": parser(request("GET", "/nowhere", "x-request-id: a\r\n set-cookie: b")),
    "header_without_a_colon": parser(request("GET", "/livez", "set-cookie")),
    "host_missing": parser(b"GET /livez HTTP/1.1\r\n\r\n"),
    "http_0_9": parser(b"GET /livez\r\n\r\n"),
    "http_2_preface": parser(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"),
    "tls_hello": parser(bytes.fromhex("16030100c8010000c40303") + b"\r\n\r\n"),
    "method_connect": parser(request("CONNECT", "example.org:443")),
    "method_trace": Attack(request("TRACE", "/livez"), 405, "method_not_allowed"),
    "method_of_1000_letters": parser(request("A" * 1000, "/livez")),
    # RFC 9112, section 3.2.2: a server accepts the absolute form
    "url_of_another_host": Attack(request("GET", "http://example.org/livez"), 200),
}  # fmt: skip

QUERIES = {
    "url_of_60000_letters": Attack(request("GET", "/" + "a" * 60_000), 404, "not_found"),
    "query_of_8000_parameters": Attack(
        step(path=STEP + "?" + "&".join(f"a{n}=1" for n in range(8000))), 422, "invalid_rule"),
    "query_of_8000_equal_parameters": Attack(
        step(path=STEP + "?" + "&".join(["lr=-1"] * 8000)), 422, "invalid_rule"),
    "query_number_of_5000_digits": Attack(
        step(path=f"{STEP}?lr={'9' * 5000}"), 422, "invalid_rule"),
    "query_number_of_400_digits": Attack(
        step(path=f"{STEP}?lr={'9' * 400}"), 422, "invalid_rule"),
    "query_infinity": Attack(step(path=f"{STEP}?lr=inf"), 422, "invalid_rule"),
    "query_with_line_breaks": Attack(step(path=f"{STEP}?lr={BREAK}"), 422, "invalid_rule"),
    "query_not_utf_8": Attack(step(path=f"{STEP}?%ff=%fe"), 422, "invalid_rule"),
    "mc_samples_of_2_64": Attack(
        step(path=f"/v1/sessions/tiny/curvature?mc_samples={2**64}"), 422, "invalid_request"),
    "after_of_5000_digits": Attack(
        request("GET", f"/v1/sessions/tiny/history?after={'9' * 5000}"), 422, "invalid_request"),
}  # fmt: skip

WISHES = {
    "seed_of_2_63": Attack(post({"model": "tiny", "seed": 2**63}), 422, "invalid_request"),
    "rule_option_of_400_digits": Attack(
        post({"model": "tiny", "rule": {"lr": 10**400}}), 422, "invalid_rule"),
    "rule_option_without_end": Attack(
        request("POST", SESSIONS, f"content-type: {JSON}",
                body=b'{"model": "tiny", "rule": {"lr": 1e999}}'), 422, "invalid_rule"),
    "rule_named_like_a_dunder": Attack(
        post({"model": "tiny", "rule": {"name": "__class__"}}), 422, "invalid_rule"),
    "optim_step_option_of_400_digits": Attack(
        optim_step(json.dumps({"options": {"lr": 10**400}})), 409, "nothing_pending"),
    "optim_step_scale_without_end": Attack(
        optim_step('{"scales": {"weight": 1e999}}'), 422, "invalid_request"),
    "optim_step_pending_of_2_64": Attack(
        optim_step(json.dumps({"pending": 2**64})), 409, "nothing_pending"),
    "document_of_bytes": Attack(
        request("POST", SESSIONS, f"content-type: {JSON}", body=b"\x80\x04K\x01."),
        400, "malformed_body"),
    "document_in_another_encoding": Attack(
        request("POST", SESSIONS, f"content-type: {JSON}",
                body=json.dumps({"model": "../x"}).encode("utf-16")), 404, "unknown_model"),
    "document_of_70_kb": Attack(
        post({"model": "tiny", "name": "a" * 70_000}), 413, "body_too_large"),
}  # fmt: skip

ATTACKS: dict[str, Attack] = FRAMING | ENCODINGS | NAMES | HEADS | QUERIES | WISHES
"""Name of the file -> the attack."""
