"""A rule's steps on parameters of this process: what the local optimizers have in common."""

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, ClassVar

import torch
from torch import Tensor

from .errors import InvalidRule
from .rules import DiagGGN, Rule, RuleState, Tensors, Update, rule_options

Closure = Callable[[], Any]


class RuleOptimizer(torch.optim.Optimizer):
    """Applies a rule to parameters that carry the quantities it reads, group by group.

    Each option is a key of the parameter groups, read at each step. What the rule remembers is part
    of `state_dict`: its numbers in the group, its tensors in the parameter's own state.

    Attributes:
        rule: the kind of rule, whose options the groups hold.
        metrics: what the rule told of the last step, one mapping for each group.
    """

    rule: type[Rule] = DiagGGN
    metrics: tuple[Mapping[str, float | Tensor], ...] = ()
    _remedy: ClassVar[str]  # how a parameter gets its quantities

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group of parameters.

        Args:
            param_group: `params`, and any of the options where they differ from the defaults.

        Raises:
            InvalidRule: an option is out of its range.
        """
        super().add_param_group(param_group)
        try:
            self._check_group(self.param_groups[-1])
        except ValueError:
            self.param_groups.pop()
            raise

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load what `state_dict` gave; the next steps are the same bits.

        Args:
            state_dict: of an optimizer with the same groups.
        """
        super().load_state_dict(state_dict)
        # torch casts a parameter's state to its dtype; averages of half precision are float32
        saved = [number for group in state_dict["param_groups"] for number in group["params"]]
        for number, parameter in zip(saved, self._parameters(), strict=True):
            for slot, tensor in state_dict["state"].get(number, {}).items():
                self.state[parameter][slot] = tensor.to(parameter.device, copy=True)

    def _check_group(self, group: dict[str, Any]) -> None:
        self._rule_of(group)

    def _rule_of(self, group: Mapping[str, Any]) -> Rule:
        """Return the rule of a parameter group's options.

        Raises:
            InvalidRule: an option is out of its range.
        """
        return self.rule(**self._options_of(group))

    def _options_of(self, group: Mapping[str, Any]) -> dict[str, Any]:
        """Return a group's options; schedulers may make tensors or numpy's numbers of them."""
        found = {name: group[name] for name in self.rule.__dataclass_fields__ if name in group}
        return {name: v.item() if hasattr(v, "item") else v for name, v in found.items()}

    def _parameters(self) -> list[Tensor]:
        return [parameter for group in self.param_groups for parameter in group["params"]]

    @torch.no_grad()
    def _step_here(self, closure: Closure | None) -> Any:
        """Run the closure, let the rule update every group, and return the closure's loss."""
        rules = [self._rule_of(group) for group in self.param_groups]
        self._check_trials(rules, closure)
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        updates = [
            self._update(group, rule, _detached(loss), closure)
            for group, rule in zip(self.param_groups, rules, strict=True)
        ]
        for group, update in zip(self.param_groups, updates, strict=True):
            self._keep(group, update)
        self.metrics = tuple(update.metrics for update in updates)
        return loss

    def _check_trials(self, rules: list[Rule], closure: Closure | None) -> None:
        if not any(rule_options(rule).get("damping_interval") for rule in rules):
            return
        if closure is None:
            raise RuntimeError(
                "a damping_interval tries steps before they are taken: call step(closure) with a "
                "closure that computes the loss again"
            )
        if len(rules) > 1:
            raise InvalidRule(
                "a damping_interval with several parameter groups", expected="a single group"
            )

    def _update(
        self, group: dict[str, Any], rule: Rule, loss: Any, closure: Closure | None
    ) -> Update:
        trained = {
            str(number): parameter
            for number, parameter in enumerate(group["params"])
            if parameter.grad is not None
        }
        state = self._remembered(group, rule)
        if not trained:
            return Update({}, state, {})
        quantities = {name: self._read(trained, name) for name in rule.quantities(state)}

        def loss_at(parameters: Tensors) -> float:
            assert closure is not None  # see _check_trials
            with _in_place_of(trained, parameters), torch.enable_grad():
                return float(_detached(closure()))

        return rule.update(
            trained, quantities, state, loss=math.nan if loss is None else loss, loss_at=loss_at
        )

    def _read(self, trained: Tensors, quantity: str) -> dict[str, Any]:
        return {name: self._quantity(parameter, quantity) for name, parameter in trained.items()}

    def _quantity(self, parameter: Tensor, quantity: str) -> Any:
        found = getattr(parameter, quantity, None)
        if not isinstance(found, Tensor | list):  # Kronecker factors are a list
            raise RuntimeError(
                f"a parameter of shape {list(parameter.shape)} has a gradient and no {quantity}: "
                + self._remedy
            )
        return found

    def _remembered(self, group: dict[str, Any], rule: Rule) -> RuleState:
        named = {str(number): parameter for number, parameter in enumerate(group["params"])}
        start = rule.start(named)
        tensors: dict[str, dict[str, Tensor]] = {}
        for name, parameter in named.items():
            for slot, tensor in self.state.get(parameter, {}).items():
                tensors.setdefault(slot, {})[name] = tensor
        scalars = {**start.scalars, **group.get("rule_state", {})}
        return RuleState(scalars, {**start.tensors, **tensors})

    def _keep(self, group: dict[str, Any], update: Update) -> None:
        group["rule_state"] = dict(update.state.scalars)
        for slot, tensors in update.state.tensors.items():
            for name, tensor in tensors.items():
                self.state[group["params"][int(name)]][slot] = tensor
        for name, tensor in update.parameters.items():
            group["params"][int(name)].copy_(tensor)


def _detached(loss: Any) -> Any:
    return loss.detach() if isinstance(loss, Tensor) else loss


@contextmanager
def _in_place_of(parameters: Tensors, others: Tensors) -> Iterator[None]:
    """Lend the parameters other values; a backward pass inside leaves no trace on them."""
    before = {name: (p.data, dict(vars(p)), p.grad) for name, p in parameters.items()}
    try:
        for name, parameter in parameters.items():
            parameter.data, parameter.grad = others[name], None
        yield
    finally:
        for name, parameter in parameters.items():
            parameter.data, attributes, parameter.grad = before[name]
            vars(parameter).update(attributes)
