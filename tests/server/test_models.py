"""Several models in one server: each with its device, its quantities and its own beginning."""

import signal
from pathlib import Path

import httpx
import pytest
import torch
from curvserve_client.types import ModelSpec
from curvserve_client.wire import encode
from torch import Tensor

from curvserve.models import resolve
from curvserve.models.support import SERVED
from tests.crash.model import CLASSES, INPUTS
from tests.server.api import SessionApi, body, code, equal
from tests.server.process import PATIENCE, serving
from tests.server.test_cli import refused

TINY = "tests.crash.model:tiny"
NORMALISED = "tests.crash.model:normalised"
BATCH = body({"inputs": torch.eye(INPUTS), "targets": torch.arange(INPUTS) % CLASSES})


def test_models_tell_their_device_and_what_they_cannot_be_asked_for() -> None:
    models = ("--model", TINY, "--model", NORMALISED)
    with (
        serving(*models, "--device", "cpu", "--device", "tiny=cpu:0", log=True) as server,
        httpx.Client(base_url=server.address) as http,
    ):
        tiny, normalised = map(ModelSpec.from_dict, http.get("/v1/models").json()["models"])
        assert (tiny.name, tiny.device, tiny.quantities, tiny.refused) == (
            "tiny",
            "cpu",
            SERVED,
            {},
        )
        assert normalised.quantities == ("grad",)
        assert {"grad", *normalised.refused} == set(SERVED)
        assert "BatchNorm1d is in training mode" in normalised.refused["diag_ggn_mc"]
        assert "model normalised: no grad_batch, " in server.logged("curvserve.models")
        session = SessionApi(http, "normalised")
        assert session.send("curvature", BATCH, query={"quantities": "grad"}).is_success
        answer = session.send("curvature", BATCH, query={"quantities": "diag_ggn_mc"})
        assert code(answer) == "unknown_quantity" and "BatchNorm1d" in answer.json()["detail"]
        assert SessionApi(http, "tiny").send("step", BATCH).is_success


def weights(file: Path, seed: int) -> dict[str, Tensor]:
    """Write parameters of the tiny model to a file."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        tensors = dict(resolve(TINY).build().state_dict())
    file.write_bytes(b"".join(encode(tensors)))
    return tensors


def test_a_session_begins_with_the_file_and_keeps_what_it_began_with(tmp_path: Path) -> None:
    first, second = tmp_path / "1.safetensors", tmp_path / "2.safetensors"
    before, after = weights(first, 1), weights(second, 2)
    kept = ("--model", TINY, "--data-dir", str(tmp_path / "data"))
    with serving(*kept, "--weights", str(first)) as server:
        with httpx.Client(base_url=server.address) as http:
            session = SessionApi(http, "tiny")
            assert equal(session.parameters(), before)
            http.post("/v1/sessions", json={"model": "tiny", "seed": 9, "name": "other"})
            assert equal(SessionApi(http, "other").parameters(), before)
            assert session.send("step", BATCH).is_success
            stepped = session.parameters()
        server.process.send_signal(signal.SIGKILL)
        server.process.wait(PATIENCE)
    first.unlink()
    with (
        serving(*kept, "--weights", f"tiny={second}") as server,
        httpx.Client(base_url=server.address) as http,
    ):
        assert equal(SessionApi(http, "tiny").parameters(), stepped)
        assert equal(SessionApi(http, "other").parameters(), before)
        assert http.get("/v1/sessions/tiny").json()["problems"] == []
        http.post("/v1/sessions", json={"model": "tiny", "name": "new"})
        assert equal(SessionApi(http, "new").parameters(), after)


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["--device", "tiny=cuda:99"], "no device 'cuda:99'"),
        (["--device", "other=cpu"], "no model is called 'other'; served: tiny"),
        (["--device", "cpu", "--device", "meter"], "two devices for all models: cpu, meter"),
        (["--weights", "absent.safetensors"], "absent.safetensors: No such file"),
        (["--model", TINY], f"two models are called 'tiny': {TINY} and {TINY}"),
        (["--model", "torchvision:resnet19"], "torchvision has no model 'resnet19'"),
        (["--model", "tests.server.misfit:model"], "the loss fails: "),
    ],
)
def test_what_cannot_be_served_is_refused_in_one_line(arguments: list[str], reason: str) -> None:
    assert reason in refused("serve", "--port", "0", "--model", TINY, *arguments)
