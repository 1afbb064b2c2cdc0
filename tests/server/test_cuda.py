"""A server on a GPU: the steps of the CPU to rounding, refusals that leave the device sound.

The parameters are float32 and torch's defaults are left as they are, so the convolutions round what
they multiply to the ten bits of TF32.
"""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest
import torch
from curvserve_client.rules import RULES
from curvserve_client.types import CurvatureResult, draw_seed
from curvserve_client.wire import decode
from torch import Tensor

from curvserve.data import load_digits, normalise
from curvserve.engine import evaluate
from curvserve.models.mnist_cnn import network
from tests.gpu import on_gpu
from tests.server import greedy
from tests.server.api import COMPUTE, SessionApi, body, code, digits, equal
from tests.server.process import PATIENCE, Server, serving

pytestmark = on_gpu

ON_GPU = ("--model", "mnist_cnn", "--device", "cuda:0")
JSON = "application/json"
STEPS = 5
TF32 = 2e-2
"""How far float32 by TF32 may be from float64, in norm over all parameters."""
NEARLY_SIGNS = {"adam", "sophia"}
"""Rules whose steps are close to signs: where the gradient is near zero, a rounding decides."""


@contextmanager
def connected(*arguments: str) -> Iterator[httpx.Client]:
    with serving(*arguments) as server, httpx.Client(base_url=server.address, timeout=60) as http:
        yield http


@pytest.fixture(scope="module")
def gpu() -> Iterator[httpx.Client]:
    with connected(*ON_GPU, "--model", "tests.server.greedy:model") as http:
        yield http


@pytest.fixture(scope="module")
def cpu() -> Iterator[httpx.Client]:
    with connected("--model", "mnist_cnn", "--device", "cpu") as http:
        yield http


def begin(http: httpx.Client, **wishes: object) -> SessionApi:
    answer = http.post("/v1/sessions", json={"model": "mnist_cnn", **wishes})
    assert answer.status_code == 201, answer.text
    return SessionApi(http, answer.json()["name"])


def batches(count: int, samples: int = 64) -> Iterator[bytes]:
    images, labels = load_digits("train")
    for first in range(0, count * samples, samples):
        own = slice(first, first + samples)
        yield body({"inputs": normalise(images[own]), "targets": labels[own]})


def train(session: SessionApi, steps: int = STEPS) -> dict[str, Tensor]:
    """Take steps, and return how far the parameters have come."""
    before = session.parameters()
    for content in batches(steps):
        answer = session.send("step", content)
        assert answer.status_code == 200, answer.text
    return {name: p - before[name] for name, p in session.parameters().items()}


def distance(found: dict[str, Tensor], expected: dict[str, Tensor]) -> float:
    """The norm of the difference over that of what is expected, over all parameters."""
    left, right = (
        torch.cat([t[n].double().flatten() for n in expected]) for t in (found, expected)
    )
    return float((left - right).norm() / right.norm())


def test_the_gpu_is_what_is_chosen_where_there_is_one(gpu: httpx.Client) -> None:
    with serving("--model", "mnist_cnn") as server:
        first, second = begin(gpu), SessionApi(httpx.Client(base_url=server.address), "mnist_cnn")
        content = body(digits(64))
        told = [one.send("evaluate", content).json()["loss"] for one in (first, second)]
        second.http.close()
    assert told[0] == told[1]


def test_curvature_is_the_engines_in_float64(gpu: httpx.Client) -> None:
    session = begin(gpu)
    names = ("grad", "diag_ggn_mc", "diag_ggn_exact", "batch_l2", "diag_h")
    answer = session.send("curvature", body(digits()), query={"quantities": ",".join(names)})
    result = CurvatureResult.from_wire(*decode(bytearray(answer.content)))
    net = network().double()
    net.load_state_dict(session.parameters())
    x, y = digits()["inputs"].double(), digits()["targets"]
    expected = evaluate(net, torch.nn.CrossEntropyLoss(), x, y, names, seed=draw_seed(0, 0))
    for name in names:
        assert distance(dict(result.tensors[name]), expected.quantities[name]) < TF32, name


@pytest.mark.parametrize("rule", RULES)
def test_steps_are_those_of_the_cpu_to_rounding(
    gpu: httpx.Client, cpu: httpx.Client, rule: str
) -> None:
    ways = [train(begin(http, rule={"name": rule}, seed=3)) for http in (gpu, cpu)]
    assert distance(*ways) < (0.25 if rule in NEARLY_SIGNS else 5 * TF32)


def test_steps_become_a_cuda_graph(gpu: httpx.Client) -> None:
    session = begin(gpu)
    train(session, 12)
    document = gpu.get(f"/v1/sessions/{session.name}").json()
    assert "CUDA graphs: " in document["execution"], document["execution"]
    assert "eager" not in document["execution"]


def test_a_rule_that_measures_remembers_and_clips(gpu: httpx.Client, cpu: httpx.Client) -> None:
    options = {
        "momentum": 0.9, "beta2": 0.9, "damping_interval": 2, "kl_clip": 0.01, "weight_decay": 1e-3
    }  # fmt: skip
    rule = {"name": "diag_ggn", **options}
    ways = [train(begin(http, rule=rule, seed=3)) for http in (gpu, cpu)]
    assert distance(*ways) < 5 * TF32


def test_two_halves_are_the_step(gpu: httpx.Client) -> None:
    whole, halves = begin(gpu), begin(gpu)
    content = body(digits(64))
    assert whole.send("step", content).status_code == 200
    assert halves.send("forward_backward", content).json()["pending"] == 1
    assert halves.send("optim_step", b"{}", media_type=JSON).json()["version"] == 1
    before = begin(gpu).parameters()
    ways = [
        {name: p - before[name] for name, p in one.parameters().items()} for one in (halves, whole)
    ]
    assert distance(*ways) < 1e-5
    for _ in range(2):
        answer = halves.send("forward_backward", content, query={"accumulate": "true"})
    assert answer.json()["pending"] == 2
    assert halves.send("optim_step", b"{}", media_type=JSON).json()["version"] == 2


def test_parameters_that_are_put_are_those_that_are_got(gpu: httpx.Client) -> None:
    first, second = begin(gpu, seed=1), begin(gpu, seed=2)
    train(first, 1)
    content = first.get("parameters").content
    assert second.send("parameters", content).status_code == 200
    assert equal(first.parameters(), second.parameters())
    told = [one.send("evaluate", body(digits())).json()["loss"] for one in (first, second)]
    assert told[0] == told[1]


@pytest.mark.parametrize("call", [*COMPUTE, "forward_backward"])
@pytest.mark.parametrize("label", [-1, 10, 2**62])
def test_a_label_out_of_range_leaves_the_device_sound(
    gpu: httpx.Client, call: str, label: int
) -> None:
    """It never reaches the device, where an assertion would end every further computation."""
    session = begin(gpu)
    before = session.state()
    wrong = digits()
    wrong["targets"] = wrong["targets"].clone()
    wrong["targets"][3] = label
    assert code(session.send(call, body(wrong))) == "invalid_batch"
    assert session.state() == before
    assert session.send("step", body(digits())).status_code == 200


def test_parameters_that_lead_to_infinity_leave_the_session_as_it_was(gpu: httpx.Client) -> None:
    session = begin(gpu)
    huge = {name: p * 1e30 for name, p in session.parameters().items()}
    assert session.send("parameters", body(huge)).status_code == 200
    before = session.state()
    assert code(session.send("step", body(digits()))) == "non_finite"
    assert session.state() == before


@pytest.mark.parametrize("call", [*COMPUTE, "forward_backward"])
def test_a_batch_too_big_for_the_device_changes_nothing(gpu: httpx.Client, call: str) -> None:
    session = begin(gpu, model="greedy")
    assert session.send("step", body(greedy.batch(greedy.FITS))).status_code == 200
    before = session.state()
    answer = session.send(call, body(greedy.batch(greedy.TOO_MANY)))
    assert (answer.status_code, code(answer)) == (507, "out_of_memory")
    assert session.state() == before
    assert session.send("step", body(greedy.batch(greedy.FITS))).json()["version"] == 2


def state(server: Server, steps: int = 0) -> tuple[str, int, bytes]:
    """Version, steps and the parameters' bytes, after so many more steps."""
    with httpx.Client(base_url=server.address, timeout=PATIENCE) as http:
        session = SessionApi(http, "mnist_cnn")
        if steps:
            train(session, steps)
        return session.state()


def test_after_a_kill_the_steps_are_computed_again_on_the_gpu_with_the_same_bits(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    kept = ("--data-dir", str(tmp_path), "--durability", "process", "--log-level", "error")
    with serving(*ON_GPU, *kept) as server:
        before = state(server, steps=20)
        server.process.send_signal(signal.SIGKILL)
        server.process.wait(PATIENCE)
    with serving(*ON_GPU, *kept) as server:
        after = state(server)
        problems = httpx.get(f"{server.address}/v1/sessions/mnist_cnn").json()["problems"]
    assert problems == [] and "other bits" not in capfd.readouterr().err
    assert after == before


def test_steps_that_another_device_took_are_told_where_the_bits_differ(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    kept = ("--data-dir", str(tmp_path), "--durability", "process", "--log-level", "error")
    with serving("--model", "mnist_cnn", "--device", "cpu", *kept) as server:
        before = state(server, steps=3)
        server.process.send_signal(signal.SIGKILL)
        server.process.wait(PATIENCE)
    with serving(*ON_GPU, *kept) as server:
        after = state(server)
        (problem,) = httpx.get(f"{server.address}/v1/sessions/mnist_cnn").json()["problems"]
    assert after[:2] == before[:2]
    assert problem.startswith("version 1 was repeated with other bits")
    assert f"device was cpu, is {torch.cuda.get_device_name(0)}" in problem
    assert problem in capfd.readouterr().err
