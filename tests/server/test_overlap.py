"""While a step computes, the server answers, and a second writer waits its turn."""

from collections.abc import Iterator

import pytest

from tests.server.api import body, code
from tests.server.gated import BATCH, Gated, gated_server
from tests.server.process import PATIENCE


@pytest.fixture(scope="module")
def gated() -> Iterator[Gated]:
    with gated_server() as found:
        yield found


def test_liveness_and_every_reader_answer_while_a_step_computes(gated: Gated) -> None:
    before = gated.session.state()
    step, computing = gated.begin_step()
    with computing:
        probes = [gated.session.http.get(path) for path in ("/livez", "/readyz", "/v1/sessions")]
        assert [probe.status_code for probe in probes] == [200, 200, 200]
        assert gated.session.state() == before
        assert not step.done()
    assert step.result().status_code == 200
    assert gated.session.state() != before


def test_a_key_whose_step_computes_is_in_flight(gated: Gated) -> None:
    step, computing = gated.begin_step(key="in-flight")
    with computing:
        retry = gated.session.send("step", body(BATCH), key="in-flight")
        assert (code(retry), retry.status_code) == ("in_flight", 409)
    first = step.result()
    again = gated.session.send("step", body(BATCH), key="in-flight")
    assert again.json() == first.json()


def test_a_second_writer_waits_and_then_finds_its_version_passed(gated: Gated) -> None:
    version = gated.session.get().json()["version"]
    first, computing = gated.begin_step()
    with computing:
        second = gated.pool.submit(gated.session.send, "step", body(BATCH), version=version)
    assert first.result().json()["version"] == version + 1
    assert code(second.result()) == "stale_version"


def test_a_server_that_is_told_to_stop_finishes_the_step_under_way() -> None:
    with gated_server() as gated:
        step, computing = gated.begin_step()
        with computing:
            gated.server.process.terminate()
        assert step.result().json()["version"] == 1
        assert gated.server.process.wait(PATIENCE) == 0
