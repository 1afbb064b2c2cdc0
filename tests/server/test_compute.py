"""What a batch is answered with: loss, curvature, a step, each exactly once."""

import json
from collections.abc import Iterator

import httpx
import pytest
import torch
from curvserve_client.errors import PROBLEMS
from curvserve_client.rules import DiagGGN, RuleState
from curvserve_client.types import CurvatureResult, EvaluateResult, StepResult, draw_seed
from curvserve_client.wire import MEDIA_TYPE, decode

from curvserve.data import load_digits, normalise
from curvserve.engine import evaluate
from curvserve.models.mnist_cnn import network
from tests.server import greedy
from tests.server.api import COMPUTE, SessionApi, as_json, body, code, digits, equal
from tests.server.process import serving

JSON = "application/json"


@pytest.fixture(scope="module")
def greedy_session() -> Iterator[SessionApi]:
    arguments = "--model", "tests.server.greedy:model", "--device", "cpu"
    with serving(*arguments) as server, httpx.Client(base_url=server.address) as http:
        yield SessionApi(http, "greedy")


def quantities(answer: httpx.Response) -> CurvatureResult:
    assert answer.headers["content-type"] == MEDIA_TYPE
    return CurvatureResult.from_wire(*decode(bytearray(answer.content)))


def test_evaluate_is_loss_and_accuracy_of_the_batch(session: SessionApi) -> None:
    answer = session.send("evaluate", body(digits()))
    result = EvaluateResult.from_dict(answer.json())
    net = network()
    net.load_state_dict(session.parameters())
    outputs = net(digits()["inputs"])
    loss = torch.nn.functional.cross_entropy(outputs, digits()["targets"])
    assert result.loss == pytest.approx(loss.item(), rel=1e-5)
    assert (result.version, result.samples, answer.headers["etag"]) == (0, 8, '"0"')


def test_curvature_is_the_engines_at_the_seed_of_the_version(session: SessionApi) -> None:
    result = quantities(session.send("curvature", body(digits()), query={"mc_samples": "3"}))
    net = network()
    net.load_state_dict(session.parameters())
    found = evaluate(
        net, torch.nn.CrossEntropyLoss(), **digits(), seed=draw_seed(0, 0), mc_samples=3
    )
    assert result.seed == draw_seed(0, 0)
    for quantity, tensors in found.quantities.items():
        torch.testing.assert_close(dict(result.tensors[quantity]), tensors)


def test_only_the_quantities_asked_for_are_sent(session: SessionApi) -> None:
    query = {"quantities": "diag_ggn_exact"}
    result = quantities(session.send("curvature", body(digits()), query=query))
    assert list(result.tensors) == ["diag_ggn_exact"]
    assert result.tensors["diag_ggn_exact"].keys() == session.parameters().keys()


def test_asking_changes_nothing_and_repeats(session: SessionApi) -> None:
    before = session.state()
    for call in ("evaluate", "curvature"):
        answers = [session.send(call, body(digits())).content for _ in range(2)]
        assert answers[0] == answers[1]
    assert session.state() == before


def test_curvature_of_a_version_that_has_passed_is_refused(session: SessionApi) -> None:
    session.send("step", body(digits()))
    answer = session.send("curvature", body(digits()), version=0)
    assert (code(answer), answer.status_code) == ("stale_version", 412)
    assert session.send("curvature", body(digits()), without="if-match").status_code == 200


def test_a_step_is_the_rule_applied_to_the_curvature(session: SessionApi) -> None:
    before = session.parameters()
    found = quantities(session.send("curvature", body(digits())))
    answer = session.send("step", body(digits()), version=0)
    result = StepResult.from_dict(answer.json())
    made = DiagGGN().update(
        before, found.tensors, RuleState(), loss=found.loss, loss_at=lambda _: 0.0
    )
    assert equal(session.parameters(), made.parameters)
    assert result.update == made.metrics == {"damping": 1.0}
    assert (result.version, answer.headers["etag"], result.samples) == (1, '"1"', 8)
    assert result.loss == found.loss and result.step_norm > 0


def test_the_query_replaces_options_of_the_rule_for_one_step(session: SessionApi) -> None:
    still = session.send("step", body(digits()), query={"lr": "0", "damping": "1e3"})
    assert (still.json()["step_norm"], still.json()["version"]) == (0.0, 1)
    assert session.send("step", body(digits())).json()["step_norm"] > 0


@pytest.mark.parametrize("call", ["evaluate", "curvature"])
def test_uint8_images_are_normalised_on_the_server(session: SessionApi, call: str) -> None:
    images, labels = load_digits("train")
    grey = {"inputs": images[:8], "targets": labels[:8]}
    ready = {"inputs": normalise(images[:8]), "targets": labels[:8]}
    answers = [session.send(call, body(batch)).content for batch in (grey, ready)]
    assert answers[0] == answers[1]


def test_a_step_on_uint8_images_is_the_step_on_the_normalised_ones(http: httpx.Client) -> None:
    images, labels = load_digits("train")
    found = []
    for name, inputs in (("grey", images[:8]), ("ready", normalise(images[:8]))):
        http.post("/v1/sessions", json={"model": "mnist_cnn", "name": name})
        one = SessionApi(http, name)
        one.send("step", body({"inputs": inputs, "targets": labels[:8]}))
        found.append(one.parameters())
        http.delete(one.path)
    assert equal(*found)


@pytest.mark.parametrize("call", ["evaluate", "curvature"])
def test_a_batch_may_be_json(session: SessionApi, call: str) -> None:
    spoken = session.send(call, as_json(digits(2)), media_type=f"{JSON}; charset=utf-8")
    packed = session.send(call, body(digits(2)), accept=JSON)
    assert spoken.headers["content-type"] == JSON
    assert spoken.json() == packed.json()


def test_a_step_may_be_json_as_curl_sends_it(session: SessionApi) -> None:
    answer = session.http.post(
        f"{session.path}/step?lr=0.1",
        headers={"content-type": JSON, "if-match": "*", "idempotency-key": "curl"},
        content=as_json(digits(2)),
    )
    assert StepResult.from_dict(answer.json()).version == 1


def test_who_sends_json_may_ask_for_tensors(session: SessionApi) -> None:
    answer = session.send("curvature", as_json(digits(2)), media_type=JSON, accept=MEDIA_TYPE)
    assert quantities(answer).samples == 2


def test_json_carries_the_same_numbers(session: SessionApi) -> None:
    told = session.send("curvature", as_json(digits(2)), media_type=JSON).json()
    result = quantities(session.send("curvature", body(digits(2))))
    assert (told["loss"], told["seed"], told["samples"]) == (result.loss, result.seed, 2)
    for name, numbers in told["tensors"].items():
        quantity, _, parameter = name.partition(".")
        assert torch.equal(torch.tensor(numbers), result.tensors[quantity][parameter])


@pytest.mark.parametrize(
    ("inputs", "targets", "tensor"),
    [
        ("[[1, 2], [3]]", "[1]", "inputs"),
        ("[[1, [2]], [3, 4]]", "[1]", "inputs"),
        ("1", "[1]", "inputs"),
        ('"an image"', "[1]", "inputs"),
        ("IMAGE", "[1.0]", "targets"),
        ("IMAGE", "[true]", "targets"),
        ("IMAGE", "[9223372036854775808]", "targets"),
        ("IMAGE", "[null]", "targets"),
        ("IMAGE", "[10]", "targets"),
        ("HUGE", "[1]", "inputs"),
    ],
)
def test_json_that_is_no_batch_is_refused(
    session: SessionApi, inputs: str, targets: str, tensor: str
) -> None:
    row = json.dumps([0.5] * 28)
    image = f"[[[{','.join([row] * 28)}]]]"
    known = {"IMAGE": image, "HUGE": image.replace("0.5", "1e39", 1)}
    content = f'{{"inputs": {known.get(inputs, inputs)}, "targets": {targets}}}'
    answer = session.send("step", content, media_type=JSON)
    assert code(answer) == "invalid_batch"
    assert answer.json()["tensor"] == tensor
    assert session.get().headers["etag"] == '"0"'


def test_a_repeated_step_is_answered_from_the_ledger(session: SessionApi) -> None:
    first = session.send("step", body(digits()), version=0, key="step-0")
    state = session.state()
    again = session.send("step", body(digits()), version=0, key="step-0")
    assert (again.status_code, again.json()) == (200, first.json())
    assert again.headers["etag"] == '"1"'
    assert session.state() == state


def test_the_retry_is_answered_though_the_session_has_moved_on(session: SessionApi) -> None:
    first = session.send("step", body(digits()), version=0, key="step-0")
    session.send("step", body(digits()), version=1)
    again = session.send("step", body(digits()), version=0, key="step-0")
    assert (again.json(), again.headers["etag"]) == (first.json(), '"1"')


@pytest.mark.parametrize("difference", ["batch", "query", "call"])
def test_a_key_with_another_request_behind_it_is_refused(
    session: SessionApi, difference: str
) -> None:
    session.send("step", body(digits()), key="step-0")
    before = session.state()
    if difference == "call":
        answer = session.send("parameters", body(session.parameters()), key="step-0")
    else:
        query = {"lr": "0.1"} if difference == "query" else None
        content = body(digits(4 if difference == "batch" else 8))
        answer = session.send("step", content, key="step-0", query=query)
    assert (code(answer), answer.status_code) == ("key_reused", PROBLEMS["key_reused"].status)
    assert session.state() == before


def test_a_step_that_was_refused_may_be_sent_again_under_its_key(session: SessionApi) -> None:
    refused = session.send("step", body(digits()), version=3, key="again")
    assert code(refused) == "stale_version"
    assert session.send("step", body(digits()), version=0, key="again").status_code == 200


@pytest.mark.parametrize("call", [*COMPUTE, "forward_backward"])
def test_a_batch_that_memory_has_no_room_for_changes_nothing(
    greedy_session: SessionApi, call: str
) -> None:
    fits, too_many = (body(greedy.batch(samples)) for samples in (greedy.FITS, greedy.TOO_MANY))
    before = greedy_session.state()
    answer = greedy_session.send(call, too_many)
    assert (answer.status_code, code(answer)) == (507, "out_of_memory")
    assert greedy_session.state() == before
    assert greedy_session.send("step", fits).status_code == 200
