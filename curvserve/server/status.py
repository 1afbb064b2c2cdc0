"""What changes all the time, for whoever watches: latencies, queues, versions and clients."""

import asyncio
import math
import time
from collections import OrderedDict, deque
from collections.abc import Iterable, Mapping, Sequence
from typing import Any
from weakref import WeakKeyDictionary

from ..sessions import Session, Sessions
from .exchange import Exchange

INTERVAL = 1.0
"""Seconds from one status to the next."""

RECENT = 512
"""Requests of a session whose latencies are told."""

CLIENTS = 64
"""Clients that are remembered; the one that was heard of longest ago is forgotten first."""

QUANTILES = {"p50": 0.50, "p95": 0.95, "p99": 0.99}


Latency = dict[str, dict[str, float]]
"""Phase -> quantile -> milliseconds."""


class Status:
    """Remembers the newest requests, and tells those who watch once a second how things are."""

    def __init__(self, sessions: Sessions, *, keyed: bool) -> None:
        """Begin without requests.

        Args:
            sessions: what there is, and who tells those who watch.
            keyed: whether clients have API keys: then they are told by these alone.
        """
        self._sessions = sessions
        self._keyed = keyed
        self._started = round(time.time(), 3)
        # by the sessions themselves: a name may be another one's next
        self._recent: WeakKeyDictionary[Session, deque[dict[str, float]]] = WeakKeyDictionary()
        self._latencies: WeakKeyDictionary[Session, Latency] = WeakKeyDictionary()  # without news
        self._depths: WeakKeyDictionary[Session, int] = WeakKeyDictionary()
        self._clients: OrderedDict[str, dict[str, float]] = OrderedDict()

    def observe(self, exchange: Exchange) -> None:
        """Note a request that has ended."""
        self._note_client(exchange)
        if "compute" not in exchange.phases.seconds or exchange.status >= 400:
            return
        session = self._sessions.get(exchange.call.parameters.get("name", ""))
        if session is None:
            return
        self._recent.setdefault(session, deque(maxlen=RECENT)).append(exchange.milliseconds())
        self._latencies.pop(session, None)
        self._depths[session] = max(session.depth, self._depths.get(session, 0))

    async def tell(self) -> None:
        """Tell for ever, once a second, while somebody watches."""
        events = self._sessions.events
        while True:
            await events.attended()
            events.show("status", **self.read())
            await asyncio.sleep(INTERVAL)

    def read(self) -> dict[str, Any]:
        """Return how things are, as JSON values."""
        sessions = self._sessions.list()
        for session, recent in self._recent.items():
            if session not in self._latencies:
                self._latencies[session] = latency(recent)
        depths, self._depths = self._depths, WeakKeyDictionary()
        now = round(time.time(), 3)
        return {
            "time": now,
            "started": self._started,
            "sessions": [self._session(each, depths.get(each, 0)) for each in sessions],
            "clients": [
                {"name": name, "requests": int(seen["requests"]), "last": seen["last"]}
                for name, seen in reversed(self._clients.items())
            ],
        }

    def _session(self, session: Session, depth: int) -> dict[str, Any]:
        return {
            "name": session.name,
            "model": session.model.name,
            "version": session.state.version,
            "durable_version": session.durable_version,
            "steps": session.state.steps,
            "depth": max(depth, session.depth),
            "latency": self._latencies.get(session, {}),
        }

    def _note_client(self, exchange: Exchange) -> None:
        name = exchange.key if self._keyed else exchange.peer
        if name is None:
            return
        seen = self._clients.setdefault(name, {"requests": 0})
        seen["requests"] += 1
        seen["last"] = round(time.time(), 3)
        self._clients.move_to_end(name)
        if len(self._clients) > CLIENTS:
            self._clients.popitem(last=False)


def latency(requests: Iterable[Mapping[str, float]]) -> Latency:
    """Return p50, p95 and p99 of each phase that requests went through, in milliseconds.

    Args:
        requests: phase -> milliseconds, of each request.
    """
    taken: dict[str, list[float]] = {}
    for request in requests:
        for phase, milliseconds in request.items():
            taken.setdefault(phase, []).append(milliseconds)
    return {
        phase: {name: round(nearest_rank(values, q), 3) for name, q in QUANTILES.items()}
        for phase, values in ((phase, sorted(values)) for phase, values in taken.items())
    }


def nearest_rank(ordered: Sequence[float], share: float) -> float:
    """Return the least value that at least a share of all values does not exceed.

    Args:
        ordered: the values, the least first; one at least.
        share: above 0, at most 1.
    """
    return ordered[math.ceil(share * len(ordered)) - 1]
