"""A hundred steps give the same bits wherever they are taken: there, mirrored, or here."""

from collections.abc import Iterator

import pytest
import torch
from curvserve_client import Client, RemoteDiagGGNOptimizer, RemoteSession
from curvserve_client.types import draw_seed
from torch import Tensor, nn

from curvserve.data import load_digits, normalise
from curvserve.engine import evaluate
from curvserve.models.mnist_cnn import network
from curvserve.optim import DiagGGNOptimizer
from tests.server.process import serving

STEPS = 100
BATCH_SIZE = 24
SEED = 11
LR, DAMPING = 0.05, 1.0
THREADS = 2

Parameters = dict[str, Tensor]


@pytest.fixture(scope="module", autouse=True)
def same_threads() -> Iterator[None]:
    """Compute here with as many threads as there."""
    before = torch.get_num_threads()
    torch.set_num_threads(THREADS)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def client() -> Iterator[Client]:
    """A server of its own, whose number of threads is known."""
    with serving(OMP_NUM_THREADS=str(THREADS)) as server, Client(server.address) as client:
        yield client


@pytest.fixture
def session(client: Client) -> Iterator[RemoteSession]:
    made = client.create_session("mnist_cnn", seed=SEED)
    yield made
    client.delete_session(made.name)


@pytest.fixture(scope="module")
def local() -> Parameters:
    """The parameters after the steps were taken here, with the engine and the local optimizer."""
    net = seeded_network()
    optimizer = DiagGGNOptimizer(net.parameters(), lr=LR, damping=DAMPING)
    for version, (images, labels) in enumerate(batches()):
        seed = draw_seed(SEED, version)
        found = evaluate(net, nn.CrossEntropyLoss(), images, labels, seed=seed)
        for name, parameter in net.named_parameters():
            parameter.grad = found.quantities["grad"][name]
            parameter.diag_ggn_mc = found.quantities["diag_ggn_mc"][name]  # type: ignore[attr-defined]  # an extension puts it there
        optimizer.step()
    return parameters_of(net)


def seeded_network() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(SEED)
        return network()


def batches() -> Iterator[tuple[Tensor, Tensor]]:
    images, labels = load_digits("train")
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(SEED))
    for number in range(STEPS):
        chosen = order.roll(-number * BATCH_SIZE)[:BATCH_SIZE]
        yield normalise(images[chosen]), labels[chosen]


def parameters_of(net: nn.Module) -> Parameters:
    return {name: parameter.detach() for name, parameter in net.named_parameters()}


def different(left: Parameters, right: Parameters) -> list[str]:
    assert left.keys() == right.keys()
    return [name for name in left if not torch.equal(left[name], right[name])]


def test_steps_taken_on_the_server(session: RemoteSession, local: Parameters) -> None:
    optimizer = RemoteDiagGGNOptimizer(session.parameters(), lr=LR, damping=DAMPING)
    for images, labels in batches():
        optimizer.step_on(images, labels)
    assert session.version == STEPS
    assert different(session.pull(), local) == []


def test_steps_taken_here_with_curvature_from_the_server(
    session: RemoteSession, local: Parameters
) -> None:
    net = seeded_network()
    mirror = session.mirror(net)
    optimizer = RemoteDiagGGNOptimizer(net.parameters(), lr=LR, damping=DAMPING)
    for images, labels in batches():
        optimizer.zero_grad()
        mirror.loss(images, labels).backward()
        optimizer.step()
    assert different(parameters_of(net), local) == []


def test_the_steps_went_somewhere(local: Parameters) -> None:
    net = network()
    net.load_state_dict(local)
    images, labels = load_digits("test")
    right = net(normalise(images)).argmax(1).eq(labels).float().mean().item()
    assert right > 0.8
