"""A module of one's own whose gradient and curvature the server computes."""

import gc
import weakref

import pytest
import torch
from curvserve_client import (
    Client,
    ParameterMismatch,
    RemoteDiagGGNOptimizer,
    RemoteSession,
    StaleVersion,
)
from torch import Tensor, nn

Batches = list[tuple[Tensor, Tensor]]


def test_gradient_and_loss_are_the_modules_own(
    session: RemoteSession, net: nn.Sequential, batches: Batches
) -> None:
    mirror = session.mirror(net)
    loss = mirror.loss(*batches[0])
    loss.backward()
    remote = {name: parameter.grad for name, parameter in net.named_parameters()}
    net.zero_grad()
    local_loss = nn.CrossEntropyLoss()(net(batches[0][0]), batches[0][1])
    local_loss.backward()
    torch.testing.assert_close(loss.detach(), local_loss.detach())
    for name, parameter in net.named_parameters():
        torch.testing.assert_close(remote[name], parameter.grad, rtol=1e-4, atol=1e-6)
        assert parameter.diag_ggn_mc.shape == parameter.shape  # type: ignore[attr-defined]  # an extension puts it there
        assert (parameter.diag_ggn_mc >= 0).all()  # type: ignore[attr-defined]  # an extension puts it there


def test_gradients_accumulate_and_curvature_is_overwritten(
    session: RemoteSession, net: nn.Sequential, batches: Batches
) -> None:
    mirror = session.mirror(net)
    bias = net[9].bias
    mirror.loss(*batches[0]).backward()
    first = bias.grad.clone()
    mirror.loss(*batches[1]).backward()
    assert mirror.last is not None
    torch.testing.assert_close(bias.grad, first + mirror.last.tensors["grad"]["9.bias"])
    assert torch.equal(bias.diag_ggn_mc, mirror.last.tensors["diag_ggn_mc"]["9.bias"])


def test_a_mirror_trains_to_the_bits_of_the_fused_step(
    session: RemoteSession, twin: RemoteSession, net: nn.Sequential, batches: Batches
) -> None:
    fused = RemoteDiagGGNOptimizer(session.parameters(), lr=0.05, damping=1.0)
    mirror = twin.mirror(net)
    mirror.pull()
    local = RemoteDiagGGNOptimizer(net.parameters(), lr=0.05, damping=1.0)
    for inputs, targets in batches:
        result = fused.step_on(inputs, targets)
        local.zero_grad()
        loss = mirror.loss(inputs, targets)
        loss.backward()
        local.step()
        assert loss.item() == result.loss
    there = session.pull()
    assert all(torch.equal(tensor, there[name]) for name, tensor in net.named_parameters())


def test_weights_are_pushed_when_they_differ_and_only_then(
    session: RemoteSession, net: nn.Sequential, batches: Batches
) -> None:
    mirror = session.mirror(net)
    assert session.version == 0
    mirror.loss(*batches[0])
    mirror.loss(*batches[1])
    assert session.version == 1
    with torch.no_grad():
        net[0].weight[3, 0, 2, 2] += 1.0
    mirror.loss(*batches[0])
    assert session.version == 2
    assert torch.equal(session.pull()["0.weight"], net[0].weight)


def test_nothing_is_pushed_after_a_pull(
    session: RemoteSession, net: nn.Sequential, batches: Batches
) -> None:
    mirror = session.mirror(net)
    mirror.pull()
    mirror.loss(*batches[0])
    assert session.info().version == 0
    assert mirror.last is not None
    assert mirror.last.version == 0


def test_someone_elses_step_is_an_error_and_can_be_mended_either_way(
    session: RemoteSession, client: Client, net: nn.Sequential, batches: Batches
) -> None:
    mirror = session.mirror(net)
    mirror.loss(*batches[0])
    other = client.session(session.name)
    for mend in (mirror.push, mirror.pull):
        other.info()
        other.step(*batches[0])
        with pytest.raises(StaleVersion):
            mirror.loss(*batches[0])
        mend()
        mirror.loss(*batches[0]).backward()
    theirs = session.pull()
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in net.named_parameters())


def test_even_the_same_sessions_own_step_is_noticed(
    session: RemoteSession, net: nn.Sequential, batches: Batches
) -> None:
    mirror = session.mirror(net)
    mirror.loss(*batches[0])
    session.step(*batches[0])
    with pytest.raises(StaleVersion):
        mirror.loss(*batches[0])


def test_a_failed_push_is_made_good_before_the_next_request(
    session: RemoteSession, client: Client, net: nn.Sequential, batches: Batches
) -> None:
    mirror = session.mirror(net)
    client.session(session.name).step(*batches[0])
    for _ in range(2):
        with pytest.raises(StaleVersion):
            mirror.loss(*batches[0])


def test_a_module_of_other_parameters_is_refused(session: RemoteSession) -> None:
    net = nn.Sequential(nn.Conv2d(1, 20, 3), nn.Linear(2, 2).double())
    with pytest.raises(ParameterMismatch) as caught:
        session.mirror(net)
    message = str(caught.value)
    assert "0.weight is float32 [20, 1, 3, 3] here and float32 [20, 1, 5, 5] there" in message
    assert "3.weight is missing in the module" in message
    assert "1.bias is not in the session" in message


def test_a_module_of_another_dtype_is_refused(session: RemoteSession, net: nn.Sequential) -> None:
    with pytest.raises(ParameterMismatch, match=r"0\.bias is float64 \[20\] here and float32"):
        session.mirror(net.double())


def test_a_factor_on_the_loss_multiplies_the_gradient_alone(
    session: RemoteSession, net: nn.Sequential, batches: Batches
) -> None:
    mirror = session.mirror(net)
    (mirror.loss(*batches[0]) / 2).backward()
    assert mirror.last is not None
    found = mirror.last.tensors
    for name, parameter in net.named_parameters():
        assert torch.equal(parameter.grad, found["grad"][name] / 2)
        assert torch.equal(parameter.diag_ggn_mc, found["diag_ggn_mc"][name])  # type: ignore[attr-defined]  # an extension puts it there


def test_without_gradients_the_loss_alone_is_computed(
    session: RemoteSession, net: nn.Sequential, batches: Batches
) -> None:
    mirror = session.mirror(net)
    with torch.no_grad():
        loss = mirror.loss(*batches[0])
    assert mirror.last is None and not loss.requires_grad
    assert loss.item() == session.evaluate(*batches[0]).loss


def test_backward_works_once(session: RemoteSession, net: nn.Sequential, batches: Batches) -> None:
    loss = session.mirror(net).loss(*batches[0])
    loss.backward()
    with pytest.raises(RuntimeError, match="called before"):
        loss.backward()


def test_a_kept_loss_keeps_no_tensors(
    session: RemoteSession, net: nn.Sequential, batches: Batches
) -> None:
    mirror = session.mirror(net)
    loss = mirror.loss(*batches[0])
    assert mirror.last is not None
    gradient = weakref.ref(mirror.last.tensors["grad"]["7.weight"])
    loss.backward()
    mirror.last = None
    gc.collect()
    assert gradient() is None
    assert loss.item() > 0


def test_frozen_parameters_get_no_gradient(
    session: RemoteSession, net: nn.Sequential, batches: Batches
) -> None:
    net[0].requires_grad_(False)
    session.mirror(net).loss(*batches[0]).backward()
    assert net[0].weight.grad is None
    assert net[3].weight.grad is not None
