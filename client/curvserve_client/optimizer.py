"""Optimizers for parameters that live elsewhere, or whose gradient is computed elsewhere."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, overload

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT

from .async_session import AsyncRemoteSession
from .exchanges import Exchange
from .handles import Home, RemoteParameter
from .local import RuleOptimizer
from .protocol import Group
from .rules import RULES, DiagGGN, Rule, make_rule, override_rule, rule_options
from .session import RemoteSession
from .types import StepResult

_REMOTE = "remote"


@dataclass
class _Batch:
    """What `step_on` hands to `step`, and gets back."""

    inputs: Tensor
    targets: Tensor
    result: StepResult | None = None


class RemoteOptimizer(RuleOptimizer):
    """A step of a rule, taken on the server or here: `torch.optim` conventions throughout.

    Given the handles of `RemoteSession.parameters()`, the server takes the steps:
    `session.loss(x, y).backward(); optimizer.step()` as in any loop, or `step_on(x, y)` in one
    round trip. Given a module's own parameters, `step()` applies the same rule to what
    `Mirror.loss(x, y).backward()` left on them. Every option of the rule is a key of the parameter
    groups and is read at each step, so schedulers work, and groups may differ.

    Parameters that are not given, or do not require gradients, or have none, stay as they are.

    Attributes:
        last: what the server told of the last step; None where steps are taken here.

    Example:
        >>> session = client.create_session("mnist_cnn", rule=Sophia())
        >>> optimizer = RemoteOptimizer(session.parameters(), rule="sophia", lr=0.01)
    """

    last: StepResult | None = None
    _batch: _Batch | None = None
    _arrived: StepResult | None = None
    _remedy = "get it from mirror.loss(x, y).backward()"

    def __init__(self, params: ParamsT, rule: str | Rule | None = None, **options: float) -> None:
        """Take parameters, or groups of them with options of their own.

        Args:
            params: handles of one session, or parameters of a module.
            rule: the rule, or its name; None for the session's own.
            options: options of the rule for all groups. Those not given are the session's own,
                or the rule's defaults for a module's parameters.

        Raises:
            InvalidRule: no such rule, or an option is unknown or out of its range.
            ValueError: handles of several sessions, handles among other parameters, or a rule that
                is not the session's.
        """
        groups, session = _listed(params)
        if rule is None:
            if session is None:
                raise ValueError(f"a module's own parameters need a rule: {', '.join(RULES)}")
            rule = session.core.info.rule
        wanted = make_rule(rule) if isinstance(rule, str) else rule
        if session is not None:
            info = session.core.info
            if wanted.name != info.rule:
                raise ValueError(
                    f"the session {info.name!r} steps by {info.rule!r}, not by {wanted.name!r}: "
                    "make one with client.create_session(model, rule=...)"
                )
            if isinstance(rule, str):
                wanted = make_rule(info.rule, info.options)
        self.rule = type(wanted)
        super().__init__(groups, rule_options(override_rule(wanted, options)))

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group of parameters; `step_size` is taken for `lr` here too.

        Args:
            param_group: `params`, and any of the options where they differ from the defaults.

        Raises:
            InvalidRule: an option is out of its range.
            ValueError: handles of several sessions, or handles among other parameters.
        """
        if "step_size" in param_group:
            param_group["lr"] = param_group.pop("step_size")
        super().add_param_group(param_group)

    def step_on(self, inputs: Tensor, targets: Tensor) -> StepResult:
        """Let the server take one step on a batch: one round trip, two where groups differ.

        Runs `step` and its hooks. The session's other calls and this one may be mixed.

        Args:
            inputs: samples first, as the model's specification says.
            targets: one per sample.

        Returns:
            Loss and metrics before the step, the version after it, and the step's norm.

        Raises:
            RuntimeError: the parameters are a module's own, or `backward` has left gradients.
            CurvserveError: the step was refused or could not be made.
        """
        self._home_of_steps_on()
        batch = self._batch = _Batch(inputs, targets)
        try:
            self.step()  # by its own name, so that hooks and schedulers see it
        finally:
            self._batch = None
        assert batch.result is not None  # set by step, which raises otherwise
        return batch.result

    async def step_on_async(self, inputs: Tensor, targets: Tensor) -> StepResult:
        """Let the server take one step on a batch; for the handles of an asynchronous session.

        The hooks of `step` run once the answer is here. Otherwise as `step_on`.
        """
        session = self._home_of_steps_on()
        result = await _awaited(session).run(self._fused(session, inputs, targets))
        return self._announce(result)

    async def step_async(self) -> StepResult:
        """Have the server step with what `await session.loss(x, y)` and `backward` left pending.

        The hooks of `step` run once the answer is here.

        Raises:
            RuntimeError: nothing is pending, or the parameters are a module's own.
        """
        session = self._home_of_steps_on()
        return self._announce(await _awaited(session).run(self._second_half(session)))

    @overload
    def step(self, closure: None = None) -> None: ...

    @overload
    def step(self, closure: Callable[[], float]) -> float: ...

    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """Take the step: there with what is pending, here with what the parameters carry.

        Parameters without a gradient are left alone, as in torch's own optimizers.

        Args:
            closure: computes the loss again, with backward; called first. With a
                `damping_interval` it is needed, and called once more whenever a step is tried.

        Returns:
            The closure's loss, None without one.

        Raises:
            RuntimeError: nothing is pending; or, for a module's own parameters, a gradient without
                the quantities that the rule reads, or a `damping_interval` without a closure.
        """
        session = self._session()
        if session is None:
            loss: float | None = self._step_here(closure)
            return loss
        if self._arrived is not None:
            self.last, self._arrived = self._arrived, None
            return None
        return self._step_there(session, closure)

    def state_dict(self) -> dict[str, Any]:
        """Return groups and state as plain values; with a session, its name and version too."""
        state = super().state_dict()
        session = self._session()
        if session is not None:
            state[_REMOTE] = {"session": session.name, "version": session.core.version}
        return state

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load what `state_dict` gave; the next step starts from the version that it was made at.

        If the session has gone on since, that step is refused (`StaleVersion`), unless it is the
        very step that the session took, sent by a client of the same `run`: then it is answered.

        Args:
            state_dict: of an optimizer with the same groups.

        Raises:
            ValueError: it is of another session, which had another version.
        """
        session, saved = self._session(), state_dict.get(_REMOTE)
        if session is not None and saved is not None:
            core = session.core
            if saved["session"] != core.name and saved["version"] != core.version:
                raise ValueError(
                    f"the state is of version {saved['version']} of the session "
                    f"{saved['session']!r}; {core.name!r} is at version {core.version}"
                )
            core.go_on_from(saved["version"])
        super().load_state_dict(
            {name: value for name, value in state_dict.items() if name != _REMOTE}
        )

    def __getstate__(self) -> dict[str, Any]:
        """Return what torch pickles, and the rule."""
        return {**super().__getstate__(), "rule": self.rule}

    def _check_group(self, group: dict[str, Any]) -> None:
        super()._check_group(group)
        _home([parameter for each in self.param_groups for parameter in each["params"]])

    def _step_there(self, session: Home, closure: Callable[[], float] | None) -> float | None:
        loss, batch = None, self._batch
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        if batch is not None:
            batch.result = self.last = _blocking(session).run(
                self._fused(session, batch.inputs, batch.targets)
            )
        else:
            self.last = _blocking(session).run(self._second_half(session))
        return loss

    def _fused(self, session: Home, inputs: Tensor, targets: Tensor) -> Exchange[StepResult]:
        """Compute and step on one batch: in one call where all parameters are stepped alike."""
        session.tape.check_used()
        trained = [p for p in self._handles() if p.requires_grad]
        groups = self._groups(session, trained)
        if groups is None:
            return (yield from session.core.step(inputs, targets, self._replaced(session, 0)))
        session.tape.passes.clear()
        yield from session.core.forward_backward(inputs, targets, accumulate=False, reduction="sum")
        return (yield from session.core.optim_step({}, {}, groups))

    def _second_half(self, session: Home) -> Exchange[StepResult]:
        trained = [p for p in self._handles() if p.requires_grad and p.grad is not None]
        scales = session.tape.scales(trained)
        groups = self._groups(session, trained)
        options = self._replaced(session, 0) if groups is None else {}
        return (yield from session.tape.step(options, scales, groups))

    def _groups(self, session: Home, trained: list[RemoteParameter]) -> list[Group] | None:
        """Return the groups of a step; None where all parameters are stepped alike.

        Raises:
            RuntimeError: no parameter has a gradient.
        """
        if not trained:
            raise RuntimeError(
                "no parameter is to be stepped: none has a gradient, or requires one"
            )
        chosen = {id(handle) for handle in trained}
        rules = {self._rule_of(group) for group in self.param_groups}
        if len(rules) == 1 and len(trained) == len(session.handles):
            return None
        groups = [
            Group(
                [p.remote_name for p in group["params"] if id(p) in chosen],
                self._replaced(session, number),
            )
            for number, group in enumerate(self.param_groups)
        ]
        return [group for group in groups if group.parameters]

    def _replaced(self, session: Home, number: int) -> dict[str, float]:
        """Return a group's options where they differ from the session's own."""
        own = session.core.info.options
        options = self._options_of(self.param_groups[number])
        return {name: value for name, value in options.items() if own.get(name) != value}

    def _announce(self, result: StepResult) -> StepResult:
        self._arrived = result
        self.step()  # by its own name, so that hooks and schedulers see it
        return result

    def _home_of_steps_on(self) -> Home:
        session = self._session()
        if session is None:
            raise RuntimeError(
                "step_on is for the handles of session.parameters(); with a module's own "
                "parameters call mirror.loss(x, y).backward() and step()"
            )
        return session

    def _session(self) -> Home | None:
        first = self._parameters()[0]
        return first.session if isinstance(first, RemoteParameter) else None

    def _handles(self) -> list[RemoteParameter]:
        return [p for p in self._parameters() if isinstance(p, RemoteParameter)]


class RemoteDiagGGNOptimizer(RemoteOptimizer):
    """p -= lr * grad / (diag_ggn_mc + damping), there or here; see `RemoteOptimizer`.

    Both give the same bits. `lr` and `damping` are keys of the parameter groups, read at each step.

    Example:
        >>> optimizer = RemoteDiagGGNOptimizer(session.parameters(), lr=0.05, damping=1.0)
        >>> for x, y in loader:
        ...     optimizer.zero_grad()
        ...     session.loss(x, y).backward()
        ...     optimizer.step()
    """

    _remedy = "get both from mirror.loss(x, y).backward()"

    def __init__(
        self,
        params: ParamsT,
        lr: float = DiagGGN.lr,
        damping: float = DiagGGN.damping,
        *,
        step_size: float | None = None,
        **options: float,
    ) -> None:
        """Take parameters, or groups of them with options of their own.

        Args:
            params: handles of one session, or parameters of a module.
            lr: step size, >= 0.
            damping: what is added to the curvature, > 0.
            step_size: another name for `lr`, which it replaces.
            options: other options of `DiagGGN`. Those not given are the session's own, or the
                rule's defaults for a module's parameters.

        Raises:
            InvalidRule: an option is unknown or out of its range.
            ValueError: handles of several sessions, handles among other parameters, or a session
                of another rule.
        """
        lr = lr if step_size is None else step_size
        super().__init__(params, DiagGGN.name, lr=lr, damping=damping, **options)


def _listed(params: ParamsT) -> tuple[list[Any], Home | None]:
    """Return parameters or groups as a list, and the session of the first handle."""
    groups: list[Any] = [params] if isinstance(params, Tensor) else list(params)
    first = groups[0] if groups else None
    if isinstance(first, dict):
        groups = [{**group, "params": _as_list(group["params"])} for group in groups]
        first = next(iter(groups[0]["params"]), None)
    if isinstance(first, tuple):
        first = first[1]
    return groups, first.session if isinstance(first, RemoteParameter) else None


def _as_list(params: Any) -> list[Any]:
    return [params] if isinstance(params, Tensor) else list(params)


def _home(parameters: list[Tensor]) -> None:
    homes = {
        id(parameter.session) if isinstance(parameter, RemoteParameter) else None
        for parameter in parameters
    }
    if len(homes) > 1:
        raise ValueError("the parameters are not of one session, or not all handles")


def _blocking(session: Home) -> RemoteSession:
    if not isinstance(session, RemoteSession):
        raise RuntimeError(
            "the session is asynchronous: await optimizer.step_async() or step_on_async(x, y)"
        )
    return session


def _awaited(session: Home) -> AsyncRemoteSession:
    if isinstance(session, RemoteSession):
        raise RuntimeError(
            "the session is not asynchronous: call optimizer.step() or step_on(x, y)"
        )
    return session
