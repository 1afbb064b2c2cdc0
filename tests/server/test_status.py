"""What is told of latencies, queues, versions and clients, to whoever watches."""

import json

import httpx
import numpy as np
import pytest

from curvserve.server.status import latency, nearest_rank
from tests.server.api import SessionApi, body, digits


def status(http: httpx.Client) -> dict[str, object]:
    """The first status that a watcher is shown."""
    # the fixture's own reads every answer to its end, and this one has none
    with (
        httpx.Client(base_url=http.base_url, timeout=60) as client,
        client.stream("GET", "/v1/events") as stream,
    ):
        fields: dict[str, str] = {}
        for line in stream.iter_lines():
            name, _, value = line.partition(": ")
            if line:
                fields[name] = value
            elif fields.get("event") == "status":
                assert "id" not in fields  # so that it is not what a watcher has last seen
                found: dict[str, object] = json.loads(fields["data"])
                return found
            else:
                fields = {}
    raise AssertionError("the stream ended")


@pytest.mark.parametrize("share", [0.5, 0.95, 0.99, 1.0])
@pytest.mark.parametrize("count", [1, 2, 7, 100, 512])
def test_quantiles_are_by_nearest_rank(share: float, count: int) -> None:
    values = sorted(np.random.default_rng(count).random(count).tolist())
    assert nearest_rank(values, share) == np.quantile(values, share, method="inverted_cdf")


def test_each_phase_is_told_of_the_requests_that_went_through_it() -> None:
    told = latency([{"compute": 1.0, "total": 3.0}, {"total": 1.0}, {"total": 2.0}])
    assert told["compute"] == {"p50": 1.0, "p95": 1.0, "p99": 1.0}
    assert told["total"] == {"p50": 2.0, "p95": 3.0, "p99": 3.0}


def test_a_watcher_is_told_how_things_are(session: SessionApi) -> None:
    session.send("step", body(digits()))
    session.send("step", b"nonsense")  # refused: not among the latencies
    found = status(session.http)
    (own,) = [each for each in found["sessions"] if each["name"] == session.name]  # type: ignore[attr-defined]  # of JSON
    assert (own["model"], own["version"], own["durable_version"]) == ("mnist_cnn", 1, None)
    assert (own["steps"], own["depth"]) == (1, 0)
    assert set(own["latency"]) == {"decode", "queue", "compute", "journal", "encode", "total"}
    for phase in own["latency"].values():
        assert 0 < phase["p50"] <= phase["p95"] <= phase["p99"] <= own["latency"]["total"]["p99"]
    (client,) = found["clients"]  # type: ignore[misc]  # of JSON
    assert client["name"] == "127.0.0.1" and client["requests"] >= 3
    assert found["started"] < client["last"] <= found["time"]  # type: ignore[operator]  # of JSON


def test_the_history_tells_what_failed(session: SessionApi) -> None:
    session.send("step", body(digits()), query={"lr": "3e38", "damping": "1e-30"})
    history = session.http.get(f"{session.path}/history").json()
    assert history.keys() == {"steps", "failed", "curvature"}
    (failure,) = history["failed"]
    assert (failure["code"], failure["version"]) == ("non_finite", 0)
