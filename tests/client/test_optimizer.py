"""RemoteDiagGGNOptimizer: an ordinary torch optimizer, there and here."""

import pytest
import torch
from curvserve_client import (
    KFAC,
    SGD,
    Adam,
    Client,
    DiagGGN,
    InvalidRule,
    RemoteDiagGGNOptimizer,
    RemoteParameter,
    RemoteSession,
    Sophia,
    StaleVersion,
)
from curvserve_client.rules import Rule, RuleState
from curvserve_client.transport import Transport
from torch import Tensor, nn
from torch.optim.lr_scheduler import ExponentialLR

from .test_transport import INFO

Batches = list[tuple[Tensor, Tensor]]


def unreached() -> RemoteSession:
    """A session that no test here sends anything to."""
    return RemoteSession(Transport("http://localhost:1", 1.0), INFO)


def filled(*shape: int, seed: int = 0) -> nn.Parameter:
    """A parameter with a gradient and a curvature on it."""
    draws = torch.randn(3, *shape, generator=torch.Generator().manual_seed(seed))
    parameter = nn.Parameter(draws[0])
    parameter.grad, parameter.diag_ggn_mc = draws[1], draws[2].square()  # type: ignore[attr-defined]  # an extension puts it there
    return parameter


def test_a_handle_is_a_parameter_that_knows_its_home() -> None:
    session = unreached()
    (handle,) = session.parameters()
    assert isinstance(handle, nn.Parameter)
    assert isinstance(handle, RemoteParameter)
    assert handle.requires_grad
    assert handle.shape == ()
    assert handle.session is session
    assert (handle.remote_name, handle.spec.shape) == ("weight", (2,))
    assert repr(handle) == "RemoteParameter('weight', shape=(2,), session='digits')"


def test_a_step_here_is_the_rule_on_each_parameter() -> None:
    parameters = [filled(3, 4), filled(5, seed=1)]
    expected = [
        torch.addcdiv(p.detach(), p.grad, p.diag_ggn_mc + 2.0, value=-0.1)  # type: ignore[attr-defined,arg-type]  # an extension puts it there
        for p in parameters
    ]
    RemoteDiagGGNOptimizer(parameters, lr=0.1, damping=2.0).step()
    assert all(map(torch.equal, parameters, expected))


def test_groups_have_their_own_options() -> None:
    first, second = filled(4), filled(4)
    before = first.detach().clone()
    groups = [{"params": [first]}, {"params": [second], "step_size": 0.0, "damping": 3.0}]
    optimizer = RemoteDiagGGNOptimizer(groups, lr=0.5)
    assert [group["lr"] for group in optimizer.param_groups] == [0.5, 0.0]
    assert [group["damping"] for group in optimizer.param_groups] == [1.0, 3.0]
    optimizer.step()
    assert not torch.equal(first, before)
    assert torch.equal(second, before)


def test_step_size_is_another_name_for_lr() -> None:
    optimizer = RemoteDiagGGNOptimizer([filled(2)], step_size=0.3)
    assert optimizer.param_groups[0]["lr"] == 0.3
    assert "step_size" not in optimizer.param_groups[0]


def test_defaults_are_the_rules() -> None:
    (group,) = RemoteDiagGGNOptimizer([filled(2)]).param_groups
    assert (group["lr"], group["damping"]) == (DiagGGN().lr, DiagGGN().damping)


def test_named_parameters_are_taken() -> None:
    optimizer = RemoteDiagGGNOptimizer([("weight", filled(2))])
    optimizer.step()
    assert optimizer.param_groups[0]["param_names"] == ["weight"]


def test_a_parameter_without_gradient_is_left_alone() -> None:
    parameter = nn.Parameter(torch.ones(2))
    RemoteDiagGGNOptimizer([parameter]).step()
    assert parameter.tolist() == [1, 1]


def test_a_gradient_without_curvature_is_an_error_before_anything_moves() -> None:
    first, second = filled(2), nn.Parameter(torch.ones(3))
    second.grad = torch.ones(3)
    before = first.detach().clone()
    with pytest.raises(RuntimeError, match=r"shape \[3\] has a gradient and no diag_ggn_mc"):
        RemoteDiagGGNOptimizer([first, second]).step()
    assert torch.equal(first, before)


def test_a_closure_runs_first_and_its_loss_is_returned() -> None:
    parameter = filled(2)
    gradient = torch.full((2,), 5.0)

    def closure() -> float:
        assert torch.is_grad_enabled()
        parameter.grad = gradient
        return 1.25

    before = parameter.detach().clone()
    curvature = parameter.diag_ggn_mc  # type: ignore[attr-defined]  # an extension puts it there
    loss = RemoteDiagGGNOptimizer([parameter], lr=1.0).step(closure)
    assert loss == 1.25
    assert torch.equal(parameter, torch.addcdiv(before, gradient, curvature + 1.0, value=-1.0))


def test_state_is_plain_and_loads() -> None:
    optimizer = RemoteDiagGGNOptimizer([filled(2)], lr=0.7, damping=0.1)
    other = RemoteDiagGGNOptimizer([filled(2)])
    other.load_state_dict(optimizer.state_dict())
    assert other.param_groups[0]["lr"] == 0.7
    assert other.param_groups[0]["damping"] == 0.1


@pytest.mark.parametrize("options", [{"lr": -1.0}, {"damping": 0.0}, {"step_size": float("nan")}])
def test_options_out_of_range_are_refused(options: dict[str, float]) -> None:
    with pytest.raises(InvalidRule):
        RemoteDiagGGNOptimizer([filled(2)], **options)


def test_a_refused_group_is_not_kept() -> None:
    optimizer = RemoteDiagGGNOptimizer([filled(2)])
    with pytest.raises(InvalidRule):
        optimizer.add_param_group({"params": [filled(3)], "damping": -1.0})
    with pytest.raises(ValueError, match="not of one session"):
        optimizer.add_param_group({"params": unreached().parameters()})
    assert len(optimizer.param_groups) == 1


def test_parameters_of_two_homes_are_refused() -> None:
    with pytest.raises(ValueError, match="not of one session"):
        RemoteDiagGGNOptimizer([*unreached().parameters(), filled(2)])
    with pytest.raises(ValueError, match="not of one session"):
        RemoteDiagGGNOptimizer([*unreached().parameters(), *unreached().parameters()])


def test_step_on_needs_handles() -> None:
    with pytest.raises(RuntimeError, match="with a module's own parameters call mirror.loss"):
        RemoteDiagGGNOptimizer([filled(2)]).step_on(torch.ones(1), torch.ones(1))


def test_step_needs_a_batch_where_the_parameters_are_remote() -> None:
    with pytest.raises(RuntimeError, match=r"or step_on\(inputs, targets\)"):
        RemoteDiagGGNOptimizer(unreached().parameters()).step()


def test_step_on_trains_there(session: RemoteSession, batches: Batches) -> None:
    optimizer = RemoteDiagGGNOptimizer(session.parameters(), lr=0.05, damping=1.0)
    before = session.evaluate(*batches[0])
    results = [optimizer.step_on(*batches[0]) for _ in range(10)]
    assert [result.version for result in results] == list(range(1, 11))
    assert results[0].loss == pytest.approx(before.loss)
    assert results[-1].loss < results[0].loss - 0.2


def test_the_groups_options_count_at_each_step(
    session: RemoteSession, twin: RemoteSession, batches: Batches
) -> None:
    optimizer = RemoteDiagGGNOptimizer(session.parameters(), lr=0.1, damping=2.0)
    scheduler = ExponentialLR(optimizer, gamma=0.5)
    norms = []
    for inputs, targets in batches:
        norms.append(optimizer.step_on(inputs, targets).step_norm)
        scheduler.step()
        optimizer.param_groups[0]["damping"] *= 0.9
    expected = [
        twin.step(*batch, lr=0.1 * 0.5**count, damping=2.0 * 0.9**count).step_norm
        for count, batch in enumerate(batches)
    ]
    assert norms == pytest.approx(expected, rel=1e-5)


def test_options_that_were_given_go_along_and_the_others_are_the_sessions_own(
    client: Client, batches: Batches
) -> None:
    heavy = DiagGGN(momentum=0.9, beta2=0.5)
    one, other = (client.create_session("mnist_cnn", seed=5, rule=heavy) for _ in range(2))
    given = {"weight_decay": 0.1, "clip": 0.5, "curvature_interval": 2, "quantiles": True}
    optimizer = RemoteDiagGGNOptimizer(one.parameters(), lr=0.1, **given)
    for batch in batches:
        result = optimizer.step_on(*batch)
        expected = other.step(*batch, lr=0.1, damping=1.0, **given)
        assert result == expected
        assert {"clipped", "curvature_q50"} < result.update.keys()
    assert result.version == len(batches)
    client.delete_session(one.name)
    client.delete_session(other.name)


@pytest.mark.parametrize("rule", [KFAC(), Sophia(), Adam(), SGD(momentum=0.9, nesterov=True)])
def test_a_session_may_have_any_rule(client: Client, batches: Batches, rule: Rule) -> None:
    session = client.create_session("mnist_cnn", seed=5, rule=rule)
    losses = [session.step(*batches[0]).loss for _ in range(3)]
    assert losses[-1] < losses[0]
    client.delete_session(session.name)


def test_another_rule_than_the_sessions_is_refused(client: Client) -> None:
    session = client.create_session("mnist_cnn", rule=SGD())
    with pytest.raises(ValueError, match="steps by 'sgd', not by 'diag_ggn'"):
        RemoteDiagGGNOptimizer(session.parameters())
    client.delete_session(session.name)


def test_options_that_do_not_exist_are_refused() -> None:
    with pytest.raises(InvalidRule, match="no option 'nesterov'; expected lr, damping, momentum"):
        RemoteDiagGGNOptimizer([filled(2)], nesterov=True)


def test_a_step_here_takes_every_option_and_remembers() -> None:
    rule = DiagGGN(0.1, 2.0, momentum=0.9, beta2=0.9, l2=0.01)
    parameter, twin = filled(3, 4), filled(3, 4)
    optimizer = RemoteDiagGGNOptimizer([parameter], 0.1, 2.0, momentum=0.9, beta2=0.9, l2=0.01)
    state, tensors = RuleState(), {"p": twin.detach()}
    for _ in range(3):
        given = {"grad": {"p": twin.grad}, "diag_ggn_mc": {"p": twin.diag_ggn_mc}}  # type: ignore[attr-defined]  # an extension puts it there
        update = rule.update(tensors, given, state, loss=0.0, loss_at=lambda _: 0.0)
        tensors, state = update.parameters, update.state
        optimizer.step()
        assert torch.equal(parameter, tensors["p"])


def test_hooks_of_step_fire_for_step_on(session: RemoteSession, batches: Batches) -> None:
    optimizer = RemoteDiagGGNOptimizer(session.parameters())
    fired: list[str] = []
    optimizer.register_step_pre_hook(lambda *_: fired.append("pre"))
    optimizer.register_step_post_hook(lambda *_: fired.append(f"post {session.version}"))
    optimizer.step_on(*batches[0])
    assert fired == ["pre", "post 1"]


def test_a_failed_step_leaves_nothing_pending(
    session: RemoteSession, client: Client, batches: Batches
) -> None:
    optimizer = RemoteDiagGGNOptimizer(session.parameters())
    client.session(session.name).push(session.pull())
    with pytest.raises(StaleVersion):
        optimizer.step_on(*batches[0])
    with pytest.raises(RuntimeError, match="nothing is pending"):
        optimizer.step()
    session.info()
    assert optimizer.step_on(*batches[0]).version == 2
