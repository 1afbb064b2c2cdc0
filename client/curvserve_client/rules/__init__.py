"""Update rules: the arithmetic of one step, one rule a file.

The server and the local optimizers call the same `update`, so that a remote step and a local one
give the same bits. A new rule is a new file and one line in `RULES`.
"""

import dataclasses
from collections.abc import Mapping
from typing import ClassVar, Protocol

from torch import Tensor

from ..errors import InvalidRule
from .diag_ggn import DiagGGN
from .sgd import SGD

__all__ = ["RULES", "SGD", "DiagGGN", "Rule", "make_rule", "override_rule", "rule_options"]


class Rule(Protocol):
    """How quantities become a step: a frozen dataclass whose fields are the rule's options.

    Attributes:
        name: what the rule is called on the wire.
        quantities: the quantities that `update` reads.
    """

    __dataclass_fields__: ClassVar[dict[str, dataclasses.Field[object]]]
    name: ClassVar[str]
    quantities: ClassVar[tuple[str, ...]]

    def update(self, parameter: Tensor, quantities: Mapping[str, Tensor]) -> Tensor:
        """Return the parameter after one step, out of place.

        Args:
            parameter: the parameter before the step, of any shape.
            quantities: quantity name -> tensor of the parameter's shape; there may be more of them
                than the rule reads.

        Returns:
            A new tensor of the parameter's shape, dtype and device.
        """
        ...


RULES: dict[str, type[Rule]] = {rule.name: rule for rule in (DiagGGN, SGD)}
"""Every rule by its name on the wire."""


def make_rule(name: str, options: Mapping[str, float] | None = None) -> Rule:
    """Return a rule by name, with its options over their defaults.

    Args:
        name: a key of `RULES`.
        options: option -> value, for instance `{"lr": 0.05, "damping": 1.0}`.

    Raises:
        InvalidRule: no such rule, no such option, or a value out of range.
    """
    rule = RULES.get(name)
    if rule is None:
        raise InvalidRule(f"no rule is called {name!r}", expected=", ".join(sorted(RULES)))
    _check_options(rule, options or {})
    return rule(**(options or {}))


def override_rule(rule: Rule, options: Mapping[str, float]) -> Rule:
    """Return the rule with some options replaced for one step.

    Args:
        rule: the rule to start from; it stays as it is.
        options: option -> value.

    Raises:
        InvalidRule: no such option, or a value out of range.
    """
    _check_options(type(rule), options)
    return dataclasses.replace(rule, **options)


def rule_options(rule: Rule) -> dict[str, float]:
    """Return what `make_rule` needs, beside the rule's name, to make an equal rule."""
    return {field.name: getattr(rule, field.name) for field in dataclasses.fields(rule)}


def _check_options(rule: type[Rule], options: Mapping[str, float]) -> None:
    known = [field.name for field in dataclasses.fields(rule)]
    for option in options:
        if option not in known:
            message = f"the rule {rule.name!r} has no option {option!r}"
            raise InvalidRule(message, expected=", ".join(known))
