"""What is measured of a request: its phases, its counts, its trace."""

import asyncio

import httpx
import pytest
import torch
from curvserve_client.errors import PROBLEMS
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from prometheus_client.parser import text_string_to_metric_families

from curvserve.models import resolve
from curvserve.phases import PHASES, Phases, measure
from curvserve.server import create_app
from curvserve.server.exchange import Exchange
from curvserve.server.metrics import BUCKETS, Metrics
from curvserve.server.route_table import NO_ROUTE
from tests.server.api import SessionApi, body, digits

STEP = "/v1/sessions/{name}/step"


def phases(answer: httpx.Response) -> dict[str, float]:
    """Server-Timing as name -> milliseconds."""
    parts = [part.partition(";dur=") for part in answer.headers["server-timing"].split(", ")]
    return {name: float(milliseconds) for name, _, milliseconds in parts}


def samples(http: httpx.Client) -> dict[str, dict[frozenset[tuple[str, str]], float]]:
    """/metrics as sample name -> labels -> value."""
    answer = http.get("/metrics")
    assert answer.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
    found: dict[str, dict[frozenset[tuple[str, str]], float]] = {}
    for family in text_string_to_metric_families(answer.text):
        for sample in family.samples:
            found.setdefault(sample.name, {})[frozenset(sample.labels.items())] = sample.value
    return found


class Rise:
    """How much samples rose since it was made."""

    def __init__(self, http: httpx.Client) -> None:
        self._http, self._before = http, samples(http)

    def of(self, name: str, **labels: str) -> float:
        key = frozenset(labels.items())
        after = samples(self._http)[name].get(key, 0.0)
        return after - self._before.get(name, {}).get(key, 0.0)


def test_an_answer_tells_where_its_time_went(session: SessionApi) -> None:
    answer = session.send("step", body(digits()))
    taken = phases(answer)
    named = [name for name in taken if name != "total"]
    assert named == [phase for phase in PHASES if phase in taken]  # in the order of the work
    assert {"decode", "encode"} <= set(named)
    assert list(taken)[-1] == "total"
    assert sum(taken[name] for name in named) <= taken["total"] + 0.01


@pytest.mark.parametrize("path", ["/livez", "/no/such/path", "/v1/sessions/nobody"])
def test_every_answer_has_its_total_refusals_too(http: httpx.Client, path: str) -> None:
    assert phases(http.get(path))["total"] > 0


def test_a_phase_that_fails_is_measured_and_one_entered_twice_adds_up() -> None:
    taken = Phases()
    with pytest.raises(KeyError), taken.measure("compute"):
        raise KeyError
    first = taken.seconds["compute"]
    with taken.measure("compute"):
        pass
    assert taken.seconds["compute"] > first > 0


def test_outside_a_request_measuring_does_nothing() -> None:
    with measure("decode"):
        pass


def test_requests_bytes_and_phases_are_counted_by_route(session: SessionApi) -> None:
    rise, content = Rise(session.http), body(digits())
    answer = session.send("step", content)
    requests = {"method": "POST", "route": STEP, "status": "200"}
    assert rise.of("curvserve_requests_total", **requests) == 1
    assert rise.of("curvserve_request_seconds_count", route=STEP) == 1
    assert rise.of("curvserve_phase_seconds_count", route=STEP, phase="decode") == 1
    seconds = rise.of("curvserve_phase_seconds_sum", route=STEP, phase="decode")
    assert seconds == pytest.approx(phases(answer)["decode"] / 1000, abs=1e-6)
    assert rise.of("curvserve_body_bytes_total", direction="received") == len(content)
    assert rise.of("curvserve_body_bytes_total", direction="sent") > len(answer.content)


def test_a_sessions_samples_follow_it_and_end_with_it(http: httpx.Client) -> None:
    session = SessionApi(
        http, http.post("/v1/sessions", json={"model": "mnist_cnn"}).json()["name"]
    )
    session.send("step", body(digits()))
    session.send("parameters", session.get("parameters").content)
    found = samples(http)
    own = frozenset({"session": session.name}.items())
    assert found["curvserve_session_version"][own] == 2
    assert found["curvserve_steps_total"][own | {("model", "mnist_cnn")}] == 1
    http.delete(session.path)
    assert session.name not in http.get("/metrics").text


def test_problems_are_counted_by_code_all_from_zero(http: httpx.Client) -> None:
    rise = Rise(http)
    http.get("/v1/sessions/nobody")
    assert rise.of("curvserve_problems_total", code="unknown_session") == 1
    codes = {dict(labels)["code"] for labels in samples(http)["curvserve_problems_total"]}
    assert codes == set(PROBLEMS)


def test_what_callers_make_up_makes_no_new_samples(http: httpx.Client) -> None:
    def series() -> set[tuple[str, frozenset[tuple[str, str]]]]:
        return {(name, labels) for name, found in samples(http).items() for labels in found}

    methods = [  # that the parser knows, and no route has
        *("ACL", "BIND", "CHECKOUT", "COPY", "LINK", "LOCK", "MERGE", "MKACTIVITY", "MKCALENDAR"),
        *("MKCOL", "MOVE", "NOTIFY", "PROPFIND", "PROPPATCH", "PURGE", "REBIND", "REPORT"),
        *("SEARCH", "SUBSCRIBE", "UNBIND"),
    ]

    def odd(number: int) -> None:
        http.request(methods[number], f"/v1/models/{number}")
        http.get(f"/nowhere/{number}")
        http.get(f"/v1/sessions/{number}")

    odd(0)
    samples(http)  # the first scrape is counted by the second
    before = series()
    for number in range(1, 20):
        odd(number)
    assert series() == before


def test_the_request_that_asks_is_the_one_in_flight(http: httpx.Client) -> None:
    assert samples(http)["curvserve_in_flight_requests"] == {frozenset(): 1}


def test_the_build_is_told(http: httpx.Client) -> None:
    ((labels, value),) = samples(http)["curvserve_build_info"].items()
    assert value == 1
    assert dict(labels)["torch"] == torch.__version__


def test_buckets_reach_from_a_probe_to_the_longest_wait() -> None:
    assert BUCKETS[0] == 1e-4 and BUCKETS[-1] == 60
    assert list(BUCKETS) == sorted(set(BUCKETS))


def test_two_applications_in_one_process_count_apart() -> None:
    busy, idle = Metrics(list), Metrics(list)
    busy.observe(Exchange("GET", "/", NO_ROUTE, "::1", status=404, problem="not_found"))
    line = 'curvserve_requests_total{method="GET",route="unmatched",status="404"} 1.0'
    assert line in busy.exposition().decode()
    assert line not in idle.exposition().decode()


@pytest.mark.parametrize("path", ["/v1/sessions/nobody/step", "/livez"])
def test_requests_are_traced_where_a_provider_is_given(path: str) -> None:
    exporter, provider = InMemorySpanExporter(), TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    app = create_app([resolve("mnist_cnn")], telemetry={"tracer_provider": provider})

    async def ask() -> httpx.Response:
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://curvserve") as http:
            method = "GET" if path == "/livez" else "POST"
            return await http.request(method, path)

    answer = asyncio.run(ask())
    server_span = exporter.get_finished_spans()[-1]
    attributes = server_span.attributes
    assert attributes is not None
    assert attributes["http.route"] == path.replace("nobody", "{name}")
    assert attributes["http.response.status_code"] == answer.status_code
