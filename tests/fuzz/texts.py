"""JSON and HTTP heads that were good once, with a few things wrong."""

import json
from random import Random

from tests.server import raw
from tests.server.tiny import CLASSES, FEATURES

TOKENS = (
    *(b"[", b"]", b"{", b"}", b",", b":", b'"', b"null", b"true", b"NaN", b"-Infinity", b"1e999"),
    *(b"-1", b"0.5", b"9" * 30, b"9" * 5000, b"1_0", b"0x1", b"/*", b'"inputs":', b'"lr":'),
    *(b"\0", b"\xff", b"\xed\xa0\x80", b'"\\ud800"', b"\xef\xbb\xbf", b"[" * 2000),
)
PIECES = (
    *(b"\r", b"\n", b"\r\n", b"\r\n\r\n", b"\r\n x", b"\0", b"\xff", b" ", b"\t", b":", b";"),
    *(b"%00", b"%", b"../", b"?", b"#", b"a" * 5000, b"HTTP/0.9", b"HTTP/2.0"),
    *(b"content-length: 5\r\n", b"transfer-encoding: chunked\r\n", b"expect: 100-continue\r\n"),
    b"connection: upgrade\r\nupgrade: websocket\r\n",
)
METHODS = ("GET", "POST", "PUT", "HEAD", "OPTIONS", "PATCH", "TRACE", "CONNECT", "get", "\x01")
PATHS = (
    *("/livez", "/readyz", "/metrics", "/v1/models", "/v1/models/tiny", "/v1/sessions/nobody"),
    *("/v1/sessions/tiny/evaluate", "/v1/sessions/tiny/curvature?quantities=grad"),
    *("/v1/sessions/tiny/history?after=0", "/nowhere", "*", "http://other/livez"),
)


def batch(rng: Random) -> bytes:
    """A JSON batch with one to three things wrong in its text."""
    samples = rng.randint(1, 4)
    inputs = [[round(rng.uniform(-2, 2), 3) for _ in range(FEATURES)] for _ in range(samples)]
    document = {"inputs": inputs, "targets": [rng.randrange(CLASSES) for _ in range(samples)]}
    return _scrambled(rng, json.dumps(document).encode(), TOKENS)


def optim_step(rng: Random) -> bytes:
    """The document of an `optim_step`, likewise."""
    document = {"options": {"lr": 0.1, "damping": 2}, "scales": {"weight": 0.5}, "pending": 1}
    return _scrambled(rng, json.dumps(document).encode(), TOKENS)


def head(rng: Random) -> bytes:
    """A whole request without a body, its head scrambled; it could never change a session."""
    headers = ("if-match: *", "x-request-id: fuzz", "accept: application/json", "last-event-id: 1")
    some = rng.sample(headers, rng.randint(0, len(headers)))
    sound = raw.request(rng.choice(METHODS), rng.choice(PATHS), "connection: close", *some)
    return _scrambled(rng, sound, PIECES)


def _scrambled(rng: Random, text: bytes, pieces: tuple[bytes, ...]) -> bytes:
    scrambled = bytearray(text)
    for _ in range(rng.randint(1, 3)):
        at = rng.randrange(len(scrambled) + 1)
        what = rng.random()
        if what < 0.5:
            scrambled[at:at] = rng.choice(pieces)
        elif what < 0.7:
            scrambled[at : at + 1] = rng.choice(pieces)
        elif what < 0.85:
            del scrambled[at : at + rng.choice([1, 4, 16])]
        elif at < len(scrambled):
            scrambled[at] ^= 1 << rng.randrange(8)
    return bytes(scrambled)
