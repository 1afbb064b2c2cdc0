"""Where the Monte-Carlo draws of a version come from."""

import hashlib


def draw_seed(session_seed: int, version: int, part: int = 0) -> int:
    """Return the seed of a version's Monte-Carlo draws.

    The first 8 bytes (big endian) of SHA-256 of `curvserve draw <session_seed> <version>`, without
    the top bit: repeatable anywhere, and unrelated from one version to the next. For the further
    batches of one step ` <part>` stands behind.

    Args:
        session_seed: the session's seed.
        version: the version of the parameters that the draws are made at.
        part: how many batches of the same step came before (`forward_backward`).

    Returns:
        A number in [0, 2**63).
    """
    behind = f" {part}" if part else ""
    text = f"curvserve draw {session_seed} {version}{behind}"
    digest = hashlib.sha256(text.encode()).digest()
    return int.from_bytes(digest[:8], "big") & (2**63 - 1)
