"""Update rules: the arithmetic of one step, one rule a file.

The server and the local optimizers call the same `update`, so that a remote step and a local one
give the same bits. A rule is a frozen dataclass of options and holds nothing else: what it
remembers between steps is a `RuleState` of plain values, which a step takes and gives back. A new
rule is a new file and one line in `RULES`.
"""

import dataclasses
from collections.abc import Mapping

from ..errors import InvalidRule
from .adam import Adam
from .base import LossAt, Quantities, Rule, RuleState, Tensors, Update
from .diag_ggn import DiagGGN
from .groups import RuleGroup, group_state, update_groups
from .kfac import KFAC
from .options import typed
from .sgd import SGD
from .sophia import Sophia

__all__ = [
    "KFAC",
    "RULES",
    "SGD",
    "Adam",
    "DiagGGN",
    "LossAt",
    "Quantities",
    "Rule",
    "RuleGroup",
    "RuleState",
    "Sophia",
    "Tensors",
    "Update",
    "group_state",
    "make_rule",
    "override_rule",
    "rule_options",
    "update_groups",
]

RULES: dict[str, type[Rule]] = {rule.name: rule for rule in (DiagGGN, SGD, Adam, Sophia, KFAC)}
"""Every rule by its name on the wire."""


def make_rule(name: str, options: Mapping[str, float] | None = None) -> Rule:
    """Return a rule by name, with its options over their defaults.

    Args:
        name: a key of `RULES`.
        options: option -> float, int or bool, for instance `{"lr": 0.05, "damping": 1.0}`.

    Raises:
        InvalidRule: no such rule, no such option, or a value out of range.
    """
    rule = RULES.get(name)
    if rule is None:
        raise InvalidRule(f"no rule is called {name!r}", expected=", ".join(sorted(RULES)))
    return rule(**_known(rule, options or {}))


def override_rule(rule: Rule, options: Mapping[str, float]) -> Rule:
    """Return the rule with some options replaced for one step.

    Args:
        rule: the rule to start from; it stays as it is.
        options: option -> value.

    Raises:
        InvalidRule: no such option, or a value out of range.
    """
    return dataclasses.replace(rule, **_known(type(rule), options)) if options else rule


def rule_options(rule: Rule) -> dict[str, float]:
    """Return what `make_rule` needs, beside the rule's name, to make an equal rule."""
    return {field.name: getattr(rule, field.name) for field in dataclasses.fields(rule)}


def _known(rule: type[Rule], options: Mapping[str, float]) -> dict[str, float]:
    known = [field.name for field in dataclasses.fields(rule)]
    for option in options:
        if option not in known:
            message = f"the rule {rule.name!r} has no option {option!r}"
            raise InvalidRule(message, expected=", ".join(known))
    return typed(rule, options)
