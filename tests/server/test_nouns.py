"""Models and sessions: what is told of them, how they begin and end."""

import httpx
from curvserve_client.types import ModelSpec, SessionInfo

from curvserve.engine.quantities import QUANTITIES
from tests.server.api import SessionApi, body, digits, equal


def test_a_model_is_described_well_enough_to_write_a_client(http: httpx.Client) -> None:
    answer = http.get("/v1/models/mnist_cnn")
    model = ModelSpec.from_dict(answer.json())
    assert model.inputs.dtype == ("float32", "uint8")
    assert model.inputs.shape == (1, 28, 28)
    assert model.targets.dtype == ("int64",)
    assert (model.targets.shape, model.targets.minimum, model.targets.maximum) == ((), 0, 9)
    assert (model.loss, model.metrics) == ("CrossEntropyLoss", ("accuracy",))
    assert model.quantities == ("grad", *(name for name, kind in QUANTITIES.items() if kind.tensor))
    assert model.parameters["7.weight"].shape == (500, 800)
    assert list(model.parameters)[:2] == ["0.weight", "0.bias"]


def test_the_list_of_models_holds_the_same(http: httpx.Client) -> None:
    models = http.get("/v1/models").json()["models"]
    assert models == [http.get(f"/v1/models/{model['name']}").json() for model in models]


def test_every_quantity_that_a_model_lists_is_served(session: SessionApi) -> None:
    model = ModelSpec.from_dict(session.http.get("/v1/models/mnist_cnn").json())
    query = {"quantities": ",".join(model.quantities)}
    assert session.send("curvature", body(digits(2)), query=query).status_code == 200


def test_a_server_begins_with_a_session_named_after_the_model(http: httpx.Client) -> None:
    found = SessionInfo.from_dict(http.get("/v1/sessions/mnist_cnn").json())
    assert (found.model, found.seed, found.rule) == ("mnist_cnn", 0, "diag_ggn")


def test_a_session_begins_as_it_was_wished(http: httpx.Client) -> None:
    wish = {
        "model": "mnist_cnn",
        "name": "wished",
        "seed": 2**63 - 1,
        "rule": {"name": "sgd", "lr": 1},
    }
    answer = http.post("/v1/sessions", json=wish)
    assert (answer.status_code, answer.headers["location"]) == (201, "/v1/sessions/wished")
    made = SessionInfo.from_dict(answer.json())
    assert (made.version, made.seed, made.rule, made.steps) == (0, 2**63 - 1, "sgd", 0)
    assert http.get("/v1/sessions/wished").json() == answer.json()
    assert "wished" in [each["name"] for each in http.get("/v1/sessions").json()["sessions"]]
    assert http.delete("/v1/sessions/wished").status_code == 204
    assert http.get("/v1/sessions/wished").status_code == 404


def test_equal_seeds_give_equal_parameters_and_others_others(http: httpx.Client) -> None:
    found = []
    for name, seed in (("first", 5), ("second", 5), ("third", 6)):
        http.post("/v1/sessions", json={"model": "mnist_cnn", "name": name, "seed": seed})
        found.append(SessionApi(http, name).parameters())
        http.delete(f"/v1/sessions/{name}")
    assert equal(found[0], found[1])
    assert not equal(found[0], found[2])


def test_sessions_do_not_touch_each_other(http: httpx.Client, session: SessionApi) -> None:
    other = SessionApi(http, http.post("/v1/sessions", json={"model": "mnist_cnn"}).json()["name"])
    before = other.state()
    assert session.send("step", body(digits())).json()["version"] == 1
    assert other.state() == before
    http.delete(other.path)


def test_the_schema_names_every_call(http: httpx.Client) -> None:
    paths = http.get("/openapi.json").json()["paths"]
    session = "/v1/sessions/{name}"
    assert {path: sorted(calls) for path, calls in paths.items()} == {
        "/livez": ["get"],
        "/readyz": ["get"],
        "/metrics": ["get"],
        "/v1/models": ["get"],
        "/v1/models/{model}": ["get"],
        "/v1/sessions": ["get", "post"],
        session: ["delete", "get"],
        f"{session}/parameters": ["get", "put"],
        f"{session}/evaluate": ["post"],
        f"{session}/curvature": ["post"],
        f"{session}/step": ["post"],
        f"{session}/forward_backward": ["post"],
        f"{session}/optim_step": ["post"],
        f"{session}/checkpoints": ["get", "post"],
        f"{session}/checkpoints/{{checkpoint}}": ["get"],
        f"{session}/history": ["get"],
        "/v1/events": ["get"],
        "/v1/backup": ["get"],
    }


def test_every_answer_carries_a_request_id_the_callers_own_if_it_is_harmless(
    http: httpx.Client,
) -> None:
    assert len(http.get("/livez").headers["x-request-id"]) == 32
    given = http.get("/livez", headers={"x-request-id": "loop-7"})
    assert given.headers["x-request-id"] == "loop-7"
    harmful = http.get("/livez", headers={"x-request-id": "a b" + "c" * 100})
    assert len(harmful.headers["x-request-id"]) == 32
