"""The order of loss, zero_grad, backward and step: what is pending there is what is seen here."""

import pytest
import torch
from curvserve_client import RemoteDiagGGNOptimizer, RemoteSession
from torch import Tensor

Batches = list[tuple[Tensor, Tensor]]


def test_a_gradient_of_an_earlier_version_is_not_added_to(
    session: RemoteSession, batches: Batches
) -> None:
    optimizer = RemoteDiagGGNOptimizer(session.parameters())
    session.loss(*batches[0]).backward()
    optimizer.step()
    loss = session.loss(*batches[1])
    with pytest.raises(RuntimeError, match=r"earlier version.*zero_grad\(\) before backward\(\)"):
        loss.backward()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    assert session.version == 2


def test_gradients_dropped_between_a_loss_and_its_backward_are_noticed(
    session: RemoteSession, batches: Batches
) -> None:
    optimizer = RemoteDiagGGNOptimizer(session.parameters())
    session.loss(*batches[0]).backward()
    loss = session.loss(*batches[1])
    optimizer.zero_grad()
    with pytest.raises(RuntimeError, match=r"were dropped.*zero_grad\(\) before the loss"):
        loss.backward()
    session.loss(*batches[1]).backward()
    optimizer.step()
    assert session.version == 1


def test_gradients_clipped_between_two_losses_of_a_step_are_noticed(
    session: RemoteSession, batches: Batches
) -> None:
    optimizer = RemoteDiagGGNOptimizer(session.parameters())
    session.loss(*batches[0]).backward()
    torch.nn.utils.clip_grad_norm_(session.parameters(), 0.1)
    with pytest.raises(RuntimeError, match=r"0\.weight was changed.*after the last backward\(\)"):
        session.loss(*batches[1]).backward()
    optimizer.zero_grad()
    for batch in batches[:2]:
        session.loss(*batch).backward()
    optimizer.step()
    assert session.version == 1


def test_step_on_does_not_leave_out_a_gradient(session: RemoteSession, batches: Batches) -> None:
    optimizer = RemoteDiagGGNOptimizer(session.parameters())
    session.loss(*batches[0]).backward()
    with pytest.raises(RuntimeError, match="backward.* left gradients that no step has taken"):
        optimizer.step_on(*batches[1])
    optimizer.zero_grad()
    assert optimizer.step_on(*batches[1]).version == 1


@pytest.mark.parametrize("foreach", [False, True])
def test_a_total_norm_is_that_of_the_remote_gradient(
    session: RemoteSession, batches: Batches, foreach: bool
) -> None:
    session.loss(*batches[0]).backward()
    gradients = session.curvature(*batches[0]).tensors["grad"].values()
    expected = torch.stack([gradient.double().norm() for gradient in gradients]).norm()
    found = torch.nn.utils.clip_grad_norm_(session.parameters(), 1e-3, foreach=foreach)
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=0)
    kept = [p.grad for p in session.parameters() if p.grad is not None]
    assert torch.stack(kept).norm().item() == pytest.approx(1e-3, rel=1e-4)


def test_a_gradient_in_the_memory_of_another_is_guarded_too(
    session: RemoteSession, batches: Batches
) -> None:
    session.loss(*batches[0]).backward()
    gradient = session.parameters()[0].grad
    assert gradient is not None
    for alias in (gradient.data, gradient.detach(), gradient[...], gradient.view(1)):
        with pytest.raises(RuntimeError, match="its elements are on the server"):
            alias.add_(1.0)


def test_a_stand_in_is_loaded_and_not_written_to(session: RemoteSession) -> None:
    module = session.module()
    module.load_state_dict(module.state_dict())  # as a trainer does with its checkpoint
    with pytest.raises(RuntimeError, match="its values are on the server"):
        module.load_state_dict({name: torch.zeros(()) for name in session.handles})
    with pytest.raises(RuntimeError, match="its values are on the server"), torch.no_grad():
        torch._foreach_mul_(session.parameters(), 0.5)
