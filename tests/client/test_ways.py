"""An ordinary loop whose weights live elsewhere, where things do not go the ordinary way."""

from copy import deepcopy
from pathlib import Path

import pytest
import torch
from curvserve_client import (
    Client,
    NothingPending,
    RemoteDiagGGNOptimizer,
    RemoteSession,
    connect,
)

from tests.client.comparing import Batches, same
from tests.server.process import serving


def test_a_gradient_that_the_server_lost_is_computed_again(
    twin: RemoteSession, batches: Batches, tmp_path: Path
) -> None:
    kept = ("--data-dir", str(tmp_path), "--durability", "process")
    with serving(*kept) as first, Client(first.address) as client:
        remote = client.create_session("mnist_cnn", "kept", seed=5)
        optimizer = RemoteDiagGGNOptimizer(remote.parameters())
        for batch in batches[:2]:
            remote.loss(*batch).backward()
        first.process.kill()
        first.process.wait()
        with serving(*kept, "--port", first.address.rpartition(":")[2]):
            optimizer.step()
            found = remote.pull()
    for number, batch in enumerate(batches[:2]):
        twin.forward_backward(*batch, accumulate=number > 0)
    twin.optim_step(lr=0.05, damping=1.0)
    expected = twin.pull()
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_what_another_client_left_pending_is_not_stepped_with(
    server_url: str, session: RemoteSession, twin: RemoteSession, batches: Batches
) -> None:
    with connect(server_url, session=session.name) as other:
        session.forward_backward(*batches[0])
        other.forward_backward(*batches[1])
        with pytest.raises(NothingPending, match="other batches are pending"):
            session.optim_step()
        session.forward_backward(*batches[0], accumulate=True)
        with pytest.raises(NothingPending):
            session.optim_step()
        optimizer = RemoteDiagGGNOptimizer(session.parameters())
        session.loss(*batches[0]).backward()
        other.forward_backward(*batches[1])
        optimizer.step()
    twin.step(*batches[0], lr=0.05, damping=1.0)
    assert same(session, twin)


def test_a_module_for_trainers_has_the_sessions_parameters(
    session: RemoteSession, batches: Batches
) -> None:
    model = session.module()
    assert dict(model.named_parameters()) == session.handles
    assert list(model.state_dict()) == list(session.handles)
    loss = model(*batches[0])
    loss.backward()
    assert model.get_parameter("0.weight").grad is not None
    with torch.no_grad():
        assert model(*batches[0]).item() == pytest.approx(loss.item())
    with pytest.raises(RuntimeError, match="copy of a remote module"):
        deepcopy(model)(*batches[0])


def test_losses_of_one_step_have_one_factor(session: RemoteSession, batches: Batches) -> None:
    session.loss(*batches[0]).backward()
    with pytest.raises(RuntimeError, match="different factors"):
        (session.loss(*batches[1]) * 3).backward()


def test_a_loss_without_its_backward_is_told_of(session: RemoteSession, batches: Batches) -> None:
    optimizer = RemoteDiagGGNOptimizer(session.parameters())
    session.loss(*batches[0])
    with pytest.raises(RuntimeError, match="its backward not called"):
        optimizer.step()
    loss = session.loss(*batches[0])
    session.loss(*batches[1])
    with pytest.raises(RuntimeError, match="another loss was computed"):
        loss.backward()


def test_a_gradient_of_an_earlier_version_is_not_stepped_with(
    server_url: str, session: RemoteSession, twin: RemoteSession, batches: Batches
) -> None:
    optimizer = RemoteDiagGGNOptimizer(session.parameters())
    session.loss(*batches[0]).backward()
    with connect(server_url, session=session.name) as other:
        other.step(*batches[1])
        other.forward_backward(*batches[2])
        session.info()
        with pytest.raises(RuntimeError, match="at version 0 and the session is at version 1"):
            optimizer.step()
        with pytest.raises(NothingPending, match="this client has no batch pending at version 1"):
            session.optim_step()
        assert other.optim_step().version == 2
    for batch in batches[1:3]:
        twin.step(*batch)
    assert same(session, twin)
