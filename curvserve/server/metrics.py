"""What Prometheus is told, in its own naming: base units, bounded labels, one registry per app."""

import platform
import shutil
from collections import Counter as Counts
from collections.abc import Callable, Iterable, Iterator
from functools import cache
from pathlib import Path

import torch
from curvserve_client.errors import PROBLEMS
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Info, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.process_collector import ProcessCollector
from prometheus_client.registry import Collector

from .. import __version__
from ..sessions import Account, Session
from ..sessions.account import QUOTAS
from ..sessions.executor import Demand
from .exchange import Exchange
from .route_table import SCOPES

BUCKETS = tuple(scale * step for scale in (1e-4, 1e-3, 1e-2, 0.1, 1.0) for step in (1, 2.5, 5)) + (
    10.0,
    30.0,
    60.0,
)
"""Seconds: a probe takes 0.1 ms, a batch may have 60 s to arrive."""

_METHODS = {call.partition(" ")[0] for call in SCOPES}

_GAUGES: dict[str, tuple[str, Callable[[Session], float]]] = {
    "curvserve_session_version": ("Current version.", lambda session: session.state.version),
    "curvserve_session_durable_version": (
        "Newest version that survives what the durability level promises; -1 at level none.",
        lambda session: -1 if session.durable_version is None else session.durable_version,
    ),
    "curvserve_session_problems": (
        "What was found damaged or different when the session was last recovered.",
        lambda session: len(session.problems),
    ),
    "curvserve_queue_depth": (
        "Requests that wait or are being computed.",
        lambda session: session.depth,
    ),
}
"""What is told of each session: name -> help, value."""


class Metrics:
    """Counts of one application.

    Attributes:
        in_flight: requests that are being answered.
    """

    def __init__(
        self,
        sessions: Callable[[], Iterable[Session]],
        folder: Callable[[], Path | None] = lambda: None,
        demand: Callable[[], Demand | None] = lambda: None,
        accounts: Callable[[], Iterable[Account]] = lambda: (),
    ) -> None:
        """Begin at zero.

        Args:
            sessions: gives the sessions that there are; asked at each scrape, so that what is told
                of a session ends with it.
            folder: gives the data folder, if there is one.
            demand: gives what sessions occupy and wait for, where devices are lent to them.
            accounts: gives the accounts of the API keys, named by the operator.
        """
        self._registry = registry = CollectorRegistry()
        registry.register(_Sessions(sessions))
        registry.register(_Disk(folder))
        registry.register(_Lent(sessions, demand))
        registry.register(_Keys(sessions, accounts))
        ProcessCollector(registry=registry)
        build = Info("curvserve_build", "What is running.", registry=registry)
        versions = {"torch": torch.__version__, "python": platform.python_version()}
        build.info({"version": __version__} | versions)
        self.in_flight = Gauge(
            "curvserve_in_flight_requests", "Being answered, this one too.", registry=registry
        )
        requests = Counter(
            "curvserve_requests",
            "Requests that were answered.",
            ["method", "route", "status"],
            registry=registry,
        )
        seconds = Histogram(
            "curvserve_request_seconds",
            "From the head of the request to the end of the answer.",
            ["route"],
            buckets=BUCKETS,
            registry=registry,
        )
        phases = Histogram(
            "curvserve_phase_seconds",
            "Time in one phase of a request.",
            ["phase", "route"],
            buckets=BUCKETS,
            registry=registry,
        )
        problems = Counter(
            "curvserve_problems", "Problems that were answered.", ["code"], registry=registry
        )
        for code in PROBLEMS:
            problems.labels(code)  # at zero, so that a first one is seen as a rise
        bodies = Counter(
            "curvserve_body_bytes", "Bytes of bodies.", ["direction"], registry=registry
        )
        # a series is found faster so than by its metric, which takes a lock and checks the labels
        self._requests, self._seconds = cache(requests.labels), cache(seconds.labels)
        self._phases, self._problems = cache(phases.labels), cache(problems.labels)
        self._received, self._sent = bodies.labels("received"), bodies.labels("sent")

    def observe(self, exchange: Exchange) -> None:
        """Count a request that has ended."""
        route = exchange.call.route
        method = exchange.method if exchange.method in _METHODS else "other"
        self._requests(method, route, exchange.status).inc()
        self._seconds(route).observe(exchange.elapsed())
        for phase, seconds in exchange.phases.seconds.items():
            self._phases(phase, route).observe(seconds)
        if exchange.problem is not None:
            self._problems(exchange.problem).inc()
        self._received.inc(exchange.received)
        self._sent.inc(exchange.sent)

    def exposition(self) -> bytes:
        """Return everything in Prometheus's text format, version 0.0.4."""
        return generate_latest(self._registry)


class _Sessions(Collector):
    """Read from the sessions themselves, at each scrape."""

    def __init__(self, sessions: Callable[[], Iterable[Session]]) -> None:
        self._sessions = sessions

    def collect(self) -> Iterator[Metric]:
        sessions = list(self._sessions())
        steps = CounterMetricFamily(
            "curvserve_steps", "Steps that were taken.", labels=["session", "model"]
        )
        for session in sessions:
            steps.add_metric([session.name, session.model.name], session.state.steps)
        yield steps
        for name, (meaning, value) in _GAUGES.items():
            gauge = GaugeMetricFamily(name, meaning, labels=["session"])
            for session in sessions:
                gauge.add_metric([session.name], value(session))
            yield gauge


class _Lent(Collector):
    """Of the devices that sessions have for themselves: what decides how many there should be."""

    def __init__(
        self, sessions: Callable[[], Iterable[Session]], demand: Callable[[], Demand | None]
    ) -> None:
        self._sessions = sessions
        self._demand = demand

    def collect(self) -> Iterator[Metric]:
        demand = self._demand()
        if demand is None:
            return
        parked = sum(session.is_parked for session in self._sessions())
        for name, meaning, value in (
            ("curvserve_workers", "Worker processes that compute for sessions.", demand.workers),
            ("curvserve_waiting_sessions", "Sessions that wait for devices.", demand.waiting),
            ("curvserve_parked_sessions", "Sessions that occupy no device.", parked),
        ):
            yield GaugeMetricFamily(name, meaning, value)


class _Keys(Collector):
    """What each API key has under way, and how often it was refused more."""

    def __init__(
        self,
        sessions: Callable[[], Iterable[Session]],
        accounts: Callable[[], Iterable[Account]],
    ) -> None:
        self._sessions = sessions
        self._accounts = accounts

    def collect(self) -> Iterator[Metric]:
        begun = GaugeMetricFamily(
            "curvserve_key_sessions", "Live sessions that a key has begun.", labels=["key"]
        )
        requests = GaugeMetricFamily(
            "curvserve_key_requests", "Its requests that wait or are computed.", labels=["key"]
        )
        refusals = CounterMetricFamily(
            "curvserve_quota_refusals", "How often it was refused more.", labels=["key", "quota"]
        )
        live = Counts(session.record.owner for session in self._sessions())
        for account in self._accounts():
            begun.add_metric([account.name], live[account.name])
            requests.add_metric([account.name], account.requests)
            for quota in QUOTAS:  # at zero too, so that a first one is seen as a rise
                refusals.add_metric([account.name, quota], account.refused[quota])
        yield from (begun, requests, refusals)


class _Disk(Collector):
    """Of the file system that the data folder is on."""

    def __init__(self, folder: Callable[[], Path | None]) -> None:
        self._folder = folder

    def collect(self) -> Iterator[Metric]:
        folder = self._folder()
        if folder is not None:
            usage = shutil.disk_usage(folder)
            free = "Bytes that the data folder's file system has left."
            yield GaugeMetricFamily("curvserve_data_folder_free_bytes", free, usage.free)
            size = "Bytes of the data folder's file system."
            yield GaugeMetricFamily("curvserve_data_folder_size_bytes", size, usage.total)
