"""Client and session against a live server."""

import pytest
import torch
from curvserve_client import Client, RemoteSession, connect, errors
from curvserve_client.rules import SGD
from curvserve_client.types import draw_seed
from torch import Tensor

from curvserve.data import load_digits, normalise

Batches = list[tuple[Tensor, Tensor]]


def test_the_server_tells_what_it_serves(client: Client) -> None:
    model = client.model("mnist_cnn")
    assert model in client.models()
    assert model.parameters["0.weight"].shape == (20, 1, 5, 5)
    assert model.inputs.shape == (1, 28, 28)
    assert {"grad", "diag_ggn_mc"} <= set(model.quantities)


def test_a_model_that_is_not_there(client: Client) -> None:
    with pytest.raises(errors.UnknownModel, match="resnet") as caught:
        client.model("resnet")
    assert caught.value.request_id
    with pytest.raises(errors.UnknownModel):
        client.create_session("resnet")


def test_connecting_by_model_finds_the_default_session(server_url: str) -> None:
    with connect(server_url, model="mnist_cnn") as session:
        assert (session.name, session.model) == ("mnist_cnn", "mnist_cnn")
        assert repr(session) == (
            f"RemoteSession('mnist_cnn', model='mnist_cnn', version={session.version}, "
            f"url={server_url!r})"
        )


def test_connecting_to_a_session_that_is_not_there(server_url: str) -> None:
    with pytest.raises(errors.UnknownSession, match="nowhere"):
        connect(server_url, session="nowhere")


def test_a_session_lives_from_creation_to_deletion(client: Client) -> None:
    session = client.create_session("mnist_cnn", "short-lived", seed=7, rule=SGD(0.5))
    info = session.info()
    assert (info.name, info.seed, info.rule, info.version) == ("short-lived", 7, "sgd", 0)
    assert info in client.sessions()
    with pytest.raises(errors.SessionExists):
        client.create_session("mnist_cnn", "short-lived")
    client.delete_session("short-lived")
    with pytest.raises(errors.UnknownSession):
        session.info()
    with pytest.raises(errors.UnknownSession):
        client.delete_session("short-lived")


def test_equal_seeds_begin_with_equal_parameters(
    session: RemoteSession, twin: RemoteSession
) -> None:
    ours, theirs = session.pull(), twin.pull()
    assert ours.keys() == theirs.keys() == session.info().parameters.keys()
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in ours.items())


def test_what_is_pushed_is_pulled(session: RemoteSession) -> None:
    pushed = {name: torch.randn_like(tensor) for name, tensor in session.pull().items()}
    assert session.push(pushed) == session.version == 1
    pulled = session.pull()
    assert all(torch.equal(tensor, pulled[name]) for name, tensor in pushed.items())


def test_what_is_pulled_stays_as_it_was(session: RemoteSession, batches: Batches) -> None:
    before = session.pull()
    copies = {name: tensor.clone() for name, tensor in before.items()}
    session.step(*batches[0])
    after = session.pull()
    session.curvature(*batches[0])
    assert all(torch.equal(tensor, copies[name]) for name, tensor in before.items())
    assert not any(torch.equal(tensor, copies[name]) for name, tensor in after.items())


def test_parameters_of_another_shape_are_refused(session: RemoteSession) -> None:
    weights = session.pull()
    with pytest.raises(errors.InvalidBatch) as caught:
        session.push(weights | {"0.bias": torch.zeros(21)})
    assert caught.value.tensor == "0.bias"
    assert session.info().version == 0


def test_evaluate_and_curvature_agree_and_change_nothing(
    session: RemoteSession, batches: Batches
) -> None:
    evaluated = session.evaluate(*batches[0])
    result = session.curvature(*batches[0])
    assert evaluated.samples == result.samples == 16
    assert evaluated.metrics == result.metrics
    assert evaluated.loss == pytest.approx(result.loss, rel=1e-6)
    assert result.seed == draw_seed(5, 0)
    assert session.info().version == 0
    again = session.curvature(*batches[0])
    assert torch.equal(
        result.tensors["diag_ggn_mc"]["9.weight"], again.tensors["diag_ggn_mc"]["9.weight"]
    )


def test_a_step_is_what_its_curvature_says(session: RemoteSession, batches: Batches) -> None:
    before = session.pull()
    result = session.curvature(*batches[0])
    step = session.step(*batches[0], lr=0.5, damping=0.25)
    after = session.pull()
    squares = 0.0
    for name, start in before.items():
        gradient, curvature = (result.tensors[q][name].double() for q in ("grad", "diag_ggn_mc"))
        change = -0.5 * gradient / (curvature + 0.25)
        torch.testing.assert_close(after[name].double(), start + change, rtol=1e-5, atol=1e-7)
        squares += float(change.square().sum())
    assert step.step_norm == pytest.approx(squares**0.5, rel=1e-4)
    assert step.loss == result.loss
    assert step.version == session.version == 1


def test_someone_elses_step_is_noticed(
    session: RemoteSession, client: Client, batches: Batches
) -> None:
    other = client.session(session.name)
    other.step(*batches[0])
    with pytest.raises(errors.StaleVersion):
        session.step(*batches[0])
    with pytest.raises(errors.StaleVersion):
        session.push(other.pull())
    with pytest.raises(errors.StaleVersion):
        session.curvature(*batches[0], version=0)
    session.info()
    assert session.step(*batches[0]).version == 2


def test_a_push_may_replace_whatever_is_there(
    session: RemoteSession, client: Client, batches: Batches
) -> None:
    weights = session.pull()
    client.session(session.name).step(*batches[0])
    assert session.push(weights, version="*") == 2


@pytest.mark.parametrize(
    ("change", "tensor"),
    [
        (lambda x, y: (x.double(), y), "inputs"),
        (lambda x, y: (x[:, :, 1:], y), "inputs"),
        (lambda x, y: (x * torch.nan, y), "inputs"),
        (lambda x, y: (x, y + 10), "targets"),
        (lambda x, y: (x, y[1:]), None),
        (lambda x, y: (x, y.float()), "targets"),
    ],
    ids=["dtype", "shape", "nan", "label", "count", "target dtype"],
)
def test_a_batch_that_does_not_fit_changes_nothing(
    session: RemoteSession, batches: Batches, change, tensor: str | None
) -> None:
    bad = change(*batches[0])
    for call in (session.evaluate, session.curvature, session.step):
        with pytest.raises(errors.InvalidBatch) as caught:
            call(*bad)
        assert tensor in (None, caught.value.tensor)
    assert session.info().version == 0


def test_a_quantity_that_is_not_served(session: RemoteSession, batches: Batches) -> None:
    with pytest.raises(errors.UnknownQuantity, match="diag_nothing"):
        session.curvature(*batches[0], ["grad", "diag_nothing"])


def test_an_option_out_of_range(session: RemoteSession, batches: Batches) -> None:
    with pytest.raises(errors.InvalidRule, match="damping"):
        session.step(*batches[0], damping=-1.0)
    assert session.info().version == 0


def test_images_may_be_bytes(session: RemoteSession) -> None:
    images = torch.randint(0, 256, (4, 1, 28, 28), dtype=torch.uint8)
    targets = torch.tensor([0, 1, 2, 3])
    normalised = (images.float() / 255 - 0.1307) / 0.3081
    expected = session.evaluate(normalised, targets).loss
    assert session.evaluate(images, targets).loss == pytest.approx(expected, rel=1e-5)


def test_a_session_of_a_client_leaves_its_connection_open(client: Client) -> None:
    client.session("mnist_cnn").close()
    assert client.sessions()


def test_quantities_may_travel_as_bfloat16(session: RemoteSession, batches: Batches) -> None:
    whole = session.curvature(*batches[0])
    half = session.curvature(*batches[0], bfloat16=["diag_ggn_mc"])
    for name, tensor in whole.tensors["diag_ggn_mc"].items():
        assert torch.equal(half.tensors["diag_ggn_mc"][name], tensor.bfloat16())
        assert torch.equal(half.tensors["grad"][name], whole.tensors["grad"][name])


def test_images_may_travel_as_bytes(session: RemoteSession) -> None:
    images, labels = (tensor[:8] for tensor in load_digits("train"))
    assert images.dtype == torch.uint8
    assert session.evaluate(images, labels) == session.evaluate(normalise(images), labels)


def test_checkpoints_are_made_listed_read_and_gone_on_from(
    client: Client, session: RemoteSession, twin: RemoteSession, batches: Batches
) -> None:
    for batch in batches[:2]:
        session.step(*batch)
        twin.step(*batch)
    made = session.checkpoint("half-way")
    assert session.checkpoints() == [made] and made.version == 2
    session.step(*batches[2])
    with pytest.raises(errors.CheckpointExists):
        session.checkpoint("half-way")
    tensors, said = session.read_checkpoint("half-way")
    assert said["version"] == "2" and torch.equal(
        tensors["parameters.0.bias"], twin.pull()["0.bias"]
    )
    again = client.create_session("mnist_cnn", from_checkpoint=f"{session.name}/half-way")
    assert again.version == 2
    assert again.step(*batches[2]) == twin.step(*batches[2])
    assert [step["version"] for step in session.history(after=1)] == [2, 3]
    client.delete_session(again.name)
