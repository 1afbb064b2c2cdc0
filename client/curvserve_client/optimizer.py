"""The optimizer of the seed, for parameters that live elsewhere or are computed elsewhere."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, overload

from torch import Tensor
from torch.optim.optimizer import ParamsT

from .handles import RemoteParameter
from .local import LocalDiagGGN, options_of, rule_of
from .rules import DiagGGN, override_rule
from .session import RemoteSession
from .types import StepResult


@dataclass
class _Batch:
    """What `step_on` hands to `step`, and gets back."""

    inputs: Tensor
    targets: Tensor
    result: StepResult | None = None


class RemoteDiagGGNOptimizer(LocalDiagGGN):
    """p -= lr * grad / (diag_ggn_mc + damping), there or here.

    Given the handles of `RemoteSession.parameters()`, `step_on(x, y)` has the server compute and
    take the step: one round trip. Given a module's own parameters, `step()` applies the same rule
    to what `Mirror.loss(x, y).backward()` left on them. Both give the same bits. `lr` and `damping`
    are read from the parameter groups at each step, so schedulers work.

    Example:
        >>> optimizer = RemoteDiagGGNOptimizer(session.parameters(), lr=0.05, damping=1.0)
        >>> for x, y in loader:
        ...     result = optimizer.step_on(x, y)
    """

    _batch: _Batch | None = None
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
        """Take parameters, or groups of them with an `lr` and a `damping` of their own.

        Args:
            params: all handles of one session, or parameters of a module.
            lr: step size, >= 0.
            damping: what is added to the curvature, > 0.
            step_size: another name for `lr`, which it replaces.
            options: other options of `DiagGGN`. Those not given are the session's own in
                `step_on`, and the rule's defaults in `step`.

        Raises:
            InvalidRule: an option is unknown or out of its range.
            ValueError: handles of several sessions, or handles among other parameters.
        """
        lr = lr if step_size is None else step_size
        override_rule(DiagGGN(), options)  # which refuses what is unknown
        super().__init__(params, {"lr": lr, "damping": damping, **options})

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
        """Let the server take one step on a batch, in one round trip.

        Runs `step` and its hooks. The session's other calls and this one may be mixed.

        Args:
            inputs: samples first, as the model's specification says.
            targets: one per sample.

        Returns:
            Loss and metrics before the step, the version after it, and the step's norm.

        Raises:
            RuntimeError: the parameters are a module's own.
            ValueError: not all of the session's parameters are here, or groups differ in options.
            CurvserveError: the step was refused or could not be made.
        """
        if self._session() is None:
            raise RuntimeError(
                "step_on is for the handles of session.parameters(); with a module's own "
                "parameters call mirror.loss(x, y).backward() and step()"
            )
        batch = self._batch = _Batch(inputs, targets)
        try:
            self.step()  # by its own name, so that hooks and schedulers see it
        finally:
            self._batch = None
        assert batch.result is not None  # set by step, which raises otherwise
        return batch.result

    @overload
    def step(self, closure: None = None) -> None: ...

    @overload
    def step(self, closure: Callable[[], float]) -> float: ...

    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """Apply the rule to a module's own parameters, which carry gradient and curvature.

        Parameters without a gradient are left alone, as in torch's own optimizers.

        Args:
            closure: computes the loss again, with backward; called first. With a
                `damping_interval` it is needed, and called once more whenever a step is tried.

        Returns:
            The closure's loss, None without one.

        Raises:
            RuntimeError: a gradient without its `diag_ggn_mc`, handles outside `step_on`, or a
                `damping_interval` without a closure.
        """
        session = self._session()
        if session is not None:
            self._step_there(session)
            return None
        loss: float | None = self._step_here(closure)
        return loss

    def _check_group(self, group: dict[str, Any]) -> None:
        super()._check_group(group)
        _check_one_home(self._parameters())

    def _step_there(self, session: RemoteSession) -> None:
        if self._batch is None:
            raise RuntimeError(
                "nothing is pending: call step_on(inputs, targets) instead of step()"
            )
        options = self._common_options(session)
        batch = self._batch
        batch.result = session.step(batch.inputs, batch.targets, **options)

    def _session(self) -> RemoteSession | None:
        first = self._parameters()[0]
        return first.session if isinstance(first, RemoteParameter) else None

    def _common_options(self, session: RemoteSession) -> dict[str, float]:
        here = {parameter.remote_name for parameter in self._parameters()}  # type: ignore[attr-defined]
        absent = [
            handle.remote_name for handle in session.parameters() if handle.remote_name not in here
        ]
        if absent:
            raise ValueError(f"a step changes every parameter; not given: {', '.join(absent)}")
        if len({rule_of(group) for group in self.param_groups}) > 1:
            raise ValueError("a step has one set of options; the parameter groups differ")
        return options_of(self.param_groups[0])


def _check_one_home(parameters: list[Tensor]) -> None:
    homes = {
        id(parameter.session) if isinstance(parameter, RemoteParameter) else None
        for parameter in parameters
    }
    if len(homes) > 1:
        raise ValueError("the parameters are not of one session, or not all handles")
