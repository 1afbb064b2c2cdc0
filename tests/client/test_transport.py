"""The client against servers that are dead, slow, broken or something else altogether."""

import json

import httpx
import pytest
import torch
from curvserve_client import (
    Client,
    ConnectionFailed,
    DeadlinePassed,
    ProtocolError,
    connect,
    errors,
    wire,
)
from curvserve_client.errors import PROBLEMS, problem_document
from curvserve_client.session import RemoteSession
from curvserve_client.transport import Transport
from curvserve_client.types import ParameterSpec, SessionInfo

from .servers import Peer, answering, closed_port, http, http_json, serving

PROBLEM = "application/problem+json"
INFO = SessionInfo(
    name="digits",
    model="mnist_cnn",
    version=3,
    durable_version=3,
    durability="full",
    seed=0,
    rule="diag_ggn",
    options={"lr": 0.05, "damping": 1.0},
    steps=3,
    pending=0,
    parameters={"weight": ParameterSpec((2,), "float32")},
    created="2026-01-01T00:00:00Z",
)
STEP = {
    "loss": 2.5,
    "metrics": {"accuracy": 0.5},
    "version": 4,
    "step_norm": 0.1,
    "samples": 2,
    "update": {},
}
BATCH = (torch.ones(2, 3), torch.tensor([0, 1]))


def session_at(url: str, timeout: float = 10.0) -> RemoteSession:
    return RemoteSession(Transport(url, timeout), INFO, owner=True)


def tensors_answer(tensors: dict[str, torch.Tensor], metadata: dict[str, str]) -> bytes:
    return http(200, wire.MEDIA_TYPE, b"".join(wire.encode(tensors, metadata)))


def test_nobody_listens() -> None:
    url = f"http://127.0.0.1:{closed_port()}"
    with pytest.raises(ConnectionFailed, match=url):
        connect(url, model="mnist_cnn")
    with Client(url) as client, pytest.raises(ConnectionError):
        client.models()


def test_the_server_never_answers() -> None:
    def silent(peer: Peer) -> None:
        peer.receive()
        peer.closing.wait()

    with (
        serving(silent) as server,
        Client(server.url, timeout=0.2) as client,
        pytest.raises(DeadlinePassed) as caught,
    ):
        client.models()
    message = str(caught.value)
    assert message.startswith(f"the list of models from {server.url}: waited 0.2 s")
    assert message.endswith("the last of it for the answer")


def test_the_server_never_takes_the_request() -> None:
    def deaf(peer: Peer) -> None:
        peer.closing.wait()

    with (
        serving(deaf) as server,
        session_at(server.url, timeout=0.3) as session,
        pytest.raises(TimeoutError, match="for the request to be taken"),
    ):
        session.push({"weight": torch.zeros(8_000_000)})


def test_an_answer_without_end_meets_the_deadline() -> None:
    def endless(peer: Peer) -> None:
        peer.receive()
        peer.send(
            b"HTTP/1.1 200 OK\r\nContent-Type: application/vnd.safetensors\r\n"
            b"Transfer-Encoding: chunked\r\n\r\n"
        )
        while not peer.closing.is_set():
            peer.send(b"1\r\nx\r\n")

    with (
        serving(endless) as server,
        session_at(server.url, timeout=0.3) as session,
        pytest.raises(DeadlinePassed, match="for the rest of the answer"),
    ):
        session.pull()


HALF_JSON = http_json({"models": []})[:-3]
HALF_TENSORS = tensors_answer({"weight": torch.ones(100_000)}, {"version": "3"})[:200_000]


@pytest.mark.parametrize("half", [b"", HALF_JSON, HALF_TENSORS], ids=["none", "json", "tensors"])
def test_the_connection_breaks_before_the_answer_ends(half: bytes) -> None:
    with (
        answering(half) as server,
        session_at(server.url) as session,
        pytest.raises(
            ConnectionFailed, match=f"the parameters of session 'digits' from {server.url}"
        ),
    ):
        session.pull()


def test_what_listens_does_not_speak_http() -> None:
    with (
        answering(b"SSH-2.0-OpenSSH_9.6\r\n\r\n") as server,
        Client(server.url) as client,
        pytest.raises(ConnectionFailed, match="SSH-2.0"),
    ):
        client.models()


@pytest.mark.parametrize(
    "answer",
    [
        http(200, "text/html", b"<h1>Welcome to nginx</h1>"),
        http(404, "text/html", b"<h1>Not found</h1>"),
        http(302, "text/html", b"", {"Location": "/login"}),
        http_json({"error": "no such thing"}, 404),
    ],
    ids=["page", "404", "redirect", "other JSON service"],
)
def test_what_listens_is_another_service(answer: bytes) -> None:
    with (
        answering(answer) as server,
        Client(server.url) as client,
        pytest.raises(ProtocolError, match=r"the list of models: .* is this a curvserve\?"),
    ):
        client.models()
    assert len(server.requests) == 1


@pytest.mark.parametrize("status", [502, 503, 504])
def test_a_proxy_says_that_the_server_is_away(status: int) -> None:
    with (
        answering(http(status, "text/html", b"<h1>Bad gateway</h1>")) as server,
        Client(server.url) as client,
        pytest.raises(ConnectionFailed, match=f"a proxy answers {status}"),
    ):
        client.models()


@pytest.mark.parametrize(
    "document",
    [b"", b"nothing", b"[]", b"{}", b'{"models": 3}', b'{"models": [3]}', b'{"models": [{}]}',
     b'{"models": NaN}', b"\xff", b'{"models":' + b"[" * 100_000],
)  # fmt: skip
def test_an_answer_that_breaks_the_contract(document: bytes) -> None:
    with (
        answering(http(200, "application/json", document)) as server,
        Client(server.url) as client,
        pytest.raises(ProtocolError, match="the list of models: "),
    ):
        client.models()


def test_an_answer_in_an_encoding_nobody_asked_for() -> None:
    answer = http(200, "application/json", b"\x1f\x8b", {"Content-Encoding": "gzip"})
    with (
        answering(answer) as server,
        Client(server.url) as client,
        pytest.raises(ProtocolError, match="encoded as gzip"),
    ):
        client.models()
    assert server.requests[0].headers["accept-encoding"] == "identity"


def test_a_document_of_absurd_length() -> None:
    answer = http(200, "application/json", b" " * 17_000_000)
    with (
        answering(answer) as server,
        Client(server.url) as client,
        pytest.raises(ProtocolError, match="longer than 16777216 bytes"),
    ):
        client.models()


@pytest.mark.parametrize("metadata", [{}, {"version": "new"}, {"version": "-1"}])
def test_parameters_without_a_version(metadata: dict[str, str]) -> None:
    answer = tensors_answer({"weight": torch.ones(2)}, metadata)
    with (
        answering(answer) as server,
        session_at(server.url) as session,
        pytest.raises(ProtocolError),
    ):
        session.pull()


def test_tensors_that_cannot_be_read() -> None:
    with (
        answering(http(200, wire.MEDIA_TYPE, b"\xff" * 100)) as server,
        session_at(server.url) as session,
        pytest.raises(ProtocolError, match="the answer cannot be read: the header claims"),
    ):
        session.pull()


def test_curvature_that_lacks_a_quantity() -> None:
    metadata = {"loss": "1.0", "metrics": "{}", "version": "3", "seed": "0", "samples": "2"}
    answer = tensors_answer({"grad.weight": torch.ones(2)}, metadata)
    with (
        answering(answer) as server,
        session_at(server.url) as session,
        pytest.raises(ProtocolError, match="the answer lacks diag_ggn_mc"),
    ):
        session.curvature(*BATCH)


@pytest.mark.parametrize("problem", PROBLEMS.values(), ids=PROBLEMS)
def test_each_code_is_raised_as_its_class(problem: type[errors.ProblemError]) -> None:
    sent = problem("it broke", request_id="r1", tensor="inputs", expected="float32")
    body = json.dumps(problem_document(sent)).encode()
    answer = http(problem.status, PROBLEM, body, {"Retry-After": "7"})
    with (
        answering(answer) as server,
        session_at(server.url, timeout=5.0) as session,
        pytest.raises(problem) as caught,
    ):
        session.step(*BATCH)
    assert type(caught.value) is problem
    assert str(caught.value) == str(sent)
    assert vars(caught.value).items() >= (vars(sent) | {"retry_after": 7.0}).items()


def test_an_unknown_code_is_told_as_it_came() -> None:
    answer = http_json({"code": "brewing", "detail": "no coffee"}, 418, PROBLEM)
    with (
        answering(answer) as server,
        session_at(server.url) as session,
        pytest.raises(ProtocolError, match="418 has the unknown code 'brewing': no coffee"),
    ):
        session.step(*BATCH)


def test_a_step_is_sent_as_the_contract_says() -> None:
    with answering(http_json(STEP)) as server, session_at(server.url) as session:
        result = session.step(*BATCH, lr=0.1, damping=1e-3)
        session.step(*BATCH)
        assert session.version == result.version == 4
    first, second = server.requests
    assert (first.method, first.path) == ("POST", "/v1/sessions/digits/step")
    assert first.query == {"lr": "0.1", "damping": "0.001"}
    assert second.query == {}
    assert first.headers["if-match"] == '"3"'
    assert second.headers["if-match"] == '"4"'
    assert len(first.headers["idempotency-key"]) >= 32
    assert first.headers["idempotency-key"] != second.headers["idempotency-key"]
    assert first.headers["content-type"] == wire.MEDIA_TYPE
    assert "transfer-encoding" not in first.headers
    sent, _ = wire.decode(first.body)
    assert torch.equal(sent["inputs"], BATCH[0])
    assert torch.equal(sent["targets"], BATCH[1])


def test_curvature_is_asked_for_as_the_contract_says() -> None:
    metadata = {"loss": "1.0", "metrics": "{}", "version": "9", "seed": "5", "samples": "2"}
    answer = tensors_answer({"diag_ggn_exact.layer.weight": torch.ones(2)}, metadata)
    with answering(answer) as server, session_at(server.url) as session:
        result = session.curvature(*BATCH, ["diag_ggn_exact"], 4)
        session.curvature(*BATCH, ["diag_ggn_exact"], version=9)
    first, second = server.requests
    assert first.query == {"quantities": "diag_ggn_exact", "mc_samples": "4"}
    assert "if-match" not in first.headers
    assert second.headers["if-match"] == '"9"'
    assert result.tensors["diag_ggn_exact"]["layer.weight"].tolist() == [1, 1]
    assert (result.loss, result.version, result.seed, result.samples) == (1.0, 9, 5, 2)


def test_large_bodies_arrive_whole_both_ways() -> None:
    generator = torch.Generator().manual_seed(0)
    weight = torch.randint(0, 256, (3_000_001,), generator=generator, dtype=torch.uint8)

    def echo(peer: Peer) -> None:
        received = peer.receive()
        assert received is not None
        if received.method == "PUT":
            peer.send(http_json({"version": 4}))
        else:
            peer.send(tensors_answer({"weight": weight}, {"version": "4"}))

    with serving(echo) as server, session_at(server.url) as session:
        session.push({"weight": weight})
        received = session.pull()
        again = session.pull()
    sent, _ = wire.decode(server.requests[0].body)
    assert torch.equal(sent["weight"], weight)
    assert torch.equal(received["weight"], weight)
    assert torch.equal(again["weight"], weight)


def test_tensors_in_chunks_of_the_servers_choice() -> None:
    body = b"".join(wire.encode({"weight": torch.ones(2)}, {"version": "3"}))
    head = (
        f"HTTP/1.1 200 OK\r\nContent-Type: {wire.MEDIA_TYPE}\r\nTransfer-Encoding: chunked\r\n\r\n"
    )
    chunks = [b"1\r\n%c\r\n" % byte for byte in body]
    with (
        answering(head.encode(), *chunks, b"0\r\n\r\n") as server,
        session_at(server.url) as session,
    ):
        assert session.pull()["weight"].tolist() == [1, 1]


def test_names_are_escaped() -> None:
    with answering(http_json(INFO.to_dict())) as server, Client(server.url) as client:
        client.session("a/b c?d=é")
    assert server.requests[0].path == "/v1/sessions/a%2Fb%20c%3Fd%3D%C3%A9"


def test_a_client_of_the_callers_own_is_used_and_stays_open() -> None:
    headers = {"Authorization": "Bearer k"}
    with answering(http_json({"models": []})) as server, httpx.Client(headers=headers) as own:
        client = Client(server.url + "/", http=own)
        assert client.models() == []
        client.close()
        assert not own.is_closed
    assert server.requests[0].headers["authorization"] == "Bearer k"
    assert server.requests[0].path == "/v1/models"


def test_a_path_before_the_contracts_own_is_kept() -> None:
    with (
        answering(http_json({"models": []})) as server,
        Client(server.url + "/curvature/") as client,
    ):
        client.models()
    assert server.requests[0].path == "/curvature/v1/models"


@pytest.mark.parametrize("url", ["gpu-host:8000", "ftp://host", "http://", "", "http://h:x"])
def test_what_is_no_url_of_a_server_is_refused(url: str) -> None:
    with pytest.raises(ValueError, match="URL"):
        Client(url)


@pytest.mark.parametrize("timeout", [0, -1, float("nan"), float("inf")])
def test_a_deadline_is_a_finite_time(timeout: float) -> None:
    with pytest.raises(ValueError, match="timeout is"):
        Client("http://localhost:8000", timeout=timeout)


def test_a_model_or_a_session_is_to_be_named() -> None:
    with pytest.raises(ValueError, match="name a model or a session"):
        connect("http://localhost:8000")


def test_a_session_of_another_model_is_not_taken() -> None:
    with (
        answering(http_json(INFO.to_dict())) as server,
        pytest.raises(errors.UnknownSession, match="'digits' is of 'mnist_cnn', not of 'mlp'"),
    ):
        connect(server.url, model="mlp", session="digits")
