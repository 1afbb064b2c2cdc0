"""Which requests were already carried out: the idempotency keys of one session."""

from collections import OrderedDict
from dataclasses import dataclass
from typing import Any

from curvserve_client.errors import InFlight, KeyReused

CAPACITY = 1024
"""Answers that are remembered; the oldest is forgotten first."""


@dataclass(frozen=True)
class Receipt:
    """The answer of a change that was carried out.

    Attributes:
        version: the session's version after it.
        answer: the JSON members that the caller was told.
    """

    version: int
    answer: dict[str, Any]


class Ledger:
    """Idempotency keys -> what was answered.

    A request that failed is forgotten: it changed nothing, so its retry is carried out.

    Example:
        >>> ledger = Ledger()
        >>> ledger.begin("key", b"fingerprint") is None
        True
        >>> ledger.finish("key", Receipt(1, {"version": 1}))
        >>> ledger.begin("key", b"fingerprint").answer
        {'version': 1}
    """

    def __init__(self, capacity: int = CAPACITY) -> None:
        """Begin empty.

        Args:
            capacity: how many finished requests are remembered.
        """
        self._capacity = capacity
        self._running: dict[str, bytes] = {}
        self._finished: OrderedDict[str, tuple[bytes, Receipt]] = OrderedDict()

    def begin(self, key: str, fingerprint: bytes) -> Receipt | None:
        """Take a key for a request, or return the receipt of the request that had it before.

        Args:
            key: the caller's idempotency key.
            fingerprint: a digest of the whole request.

        Returns:
            None where the request is new and must now be carried out.

        Raises:
            KeyReused: the key belongs to another request.
            InFlight: the same request is still running.
        """
        before, receipt = self._finished.get(key, (self._running.get(key), None))
        if before is None:
            self._running[key] = fingerprint
        elif before != fingerprint:
            raise KeyReused(f"the key {key!r} came before with another request")
        elif receipt is None:
            raise InFlight(f"the request with the key {key!r} is still running")
        return receipt

    def finish(self, key: str, receipt: Receipt) -> None:
        """Keep the answer of a request that was carried out."""
        self._finished[key] = (self._running.pop(key), receipt)
        if len(self._finished) > self._capacity:
            self._finished.popitem(last=False)

    def forget(self, key: str) -> None:
        """Give a key back whose request failed and changed nothing."""
        del self._running[key]
