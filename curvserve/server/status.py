"""What changes all the time, for whoever watches: latencies, queues, versions and clients."""

import asyncio
import math
import time
from collections import OrderedDict, deque
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from ..sessions import Session, Sessions
from .exchange import Exchange

INTERVAL = 1.0
"""Seconds from one status to the next."""

RECENT = 512
"""Requests of a session whose latencies are told."""

CLIENTS = 64
"""Clients that are remembered; the one that was heard of longest ago is forgotten first."""

QUANTILES = {"p50": 0.50, "p95": 0.95, "p99": 0.99}


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
        self._recent: dict[str, deque[dict[str, float]]] = {}
        self._latencies: dict[str, dict[str, dict[str, float]]] = {}  # of those without news
        self._clients: OrderedDict[str, dict[str, float]] = OrderedDict()
        self._depths: dict[str, int] = {}

    def observe(self, exchange: Exchange) -> None:
        """Note a request that has ended."""
        self._note_client(exchange)
        if "compute" not in exchange.phases.seconds or exchange.status >= 400:
            return
        name = exchange.call.parameters.get("name")
        if name is None or self._sessions.is_free(name):
            return
        self._recent.setdefault(name, deque(maxlen=RECENT)).append(exchange.milliseconds())
        self._latencies.pop(name, None)
        depth = self._sessions.depth(name)
        self._depths[name] = max(depth, self._depths.get(name, 0))

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
        names = {session.name for session in sessions}
        self._recent = {name: recent for name, recent in self._recent.items() if name in names}
        self._latencies = {
            name: self._latencies.get(name) or latency(recent)
            for name, recent in self._recent.items()
        }
        depths, self._depths = self._depths, {}
        now = round(time.time(), 3)
        return {
            "time": now,
            "started": self._started,
            "sessions": [self._session(each, depths.get(each.name, 0)) for each in sessions],
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
            "latency": self._latencies.get(session.name, {}),
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


def latency(requests: Iterable[Mapping[str, float]]) -> dict[str, dict[str, float]]:
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
