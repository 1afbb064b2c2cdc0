"""Every hostile body and request is answered as its table says, and changes nothing."""

import re
import socket
from collections.abc import Iterator

import httpx
import pytest
from curvserve_client.errors import PROBLEMS, MalformedBody
from curvserve_client.wire import decode

from tests.attacks import hostile_bodies, hostile_requests, make
from tests.server import raw, tiny
from tests.server.api import SessionApi, body, code
from tests.server.process import serving


@pytest.fixture(scope="module")
def session() -> Iterator[SessionApi]:
    """The default session of a server of the model `tiny`."""
    with (
        serving("--model", tiny.REFERENCE, "--log-level", "error") as server,
        httpx.Client(base_url=server.address, timeout=raw.PATIENCE) as http,
    ):
        yield SessionApi(http, "tiny")


@pytest.fixture
def unchanged(session: SessionApi) -> Iterator[None]:
    """The session, and the list of sessions, are after an attack what they were before."""
    before = session.state(), session.http.get("/v1/sessions").json()
    yield
    assert (session.state(), session.http.get("/v1/sessions").json()) == before


def test_the_files_are_what_the_table_says() -> None:
    files = make.files()
    assert make.present() == files.keys(), "python -m tests.attacks.make writes them anew"
    assert all(path.read_bytes() == content for path, content in files.items())


@pytest.mark.usefixtures("unchanged")
@pytest.mark.parametrize("name", hostile_bodies.ATTACKS)
def test_a_hostile_body(session: SessionApi, name: str) -> None:
    attack = hostile_bodies.ATTACKS[name]
    for call in ("step", "evaluate", "curvature", "forward_backward"):
        answer = session.send(call, attack.body, media_type=attack.media_type)
        problem = answer.json()
        assert (code(answer), answer.status_code) == (attack.code, PROBLEMS[attack.code].status)
        assert (problem.get("tensor"), attack.says in problem["detail"]) == (attack.tensor, True)
        assert len(answer.content) < 4096  # a problem does not send the attack back


@pytest.mark.parametrize("name", hostile_bodies.HEADERS | hostile_bodies.LAYOUTS)
def test_a_hostile_body_for_whoever_reads_it(name: str) -> None:
    attack = hostile_bodies.ATTACKS[name]
    says = "is BOOL" if name == "bool_of_two" else attack.says
    with pytest.raises(MalformedBody, match=re.escape(says)):
        decode(bytearray(attack.body))


@pytest.mark.usefixtures("unchanged")
@pytest.mark.parametrize("name", hostile_requests.ATTACKS)
def test_a_hostile_request(session: SessionApi, name: str) -> None:
    attack = hostile_requests.ATTACKS[name]
    with raw.connect(str(session.http.base_url)) as connection:
        connection.sendall(attack.sent)
        if attack.close:
            connection.shutdown(socket.SHUT_WR)
        answer = raw.read_answer(connection)
    if not attack.status:
        assert answer is None
        return
    assert answer is not None and answer.status_code == attack.status
    assert attack.lacks not in str(answer.headers)
    if attack.code == hostile_requests.REFUSED_BY_THE_PARSER:
        assert answer.text == attack.code
    elif attack.code:
        assert code(answer) == attack.code
        assert attack.says in answer.json()["detail"]


def test_after_all_that_a_step_is_taken(session: SessionApi) -> None:
    version = session.get().json()["version"]
    assert session.send("step", body(tiny.batch())).json()["version"] == version + 1
