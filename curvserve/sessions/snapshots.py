"""A session's state as it is stored, and back."""

from collections.abc import Mapping
from dataclasses import replace

from curvserve_client.rules import Rule, RuleState
from torch import Tensor

from .state import SessionState
from .storage import RULE, Snapshot

PARAMETERS, BUFFERS = "parameters", "buffers"


def snapshot_of(state: SessionState) -> Snapshot:
    """Return a state as it is stored; its tensors are shared."""
    slots = {
        f"{slot}.{name}": tensor  # no slot has a dot in its name
        for slot, tensors in state.rule_state.tensors.items()
        for name, tensor in tensors.items()
    }
    groups = {PARAMETERS: state.parameters, BUFFERS: state.buffers, RULE: slots}
    return Snapshot(state.version, state.steps, groups, dict(state.rule_state.scalars))


def state_of(snapshot: Snapshot, model: str, seed: int, rule: Rule) -> SessionState:
    """Return the state that a snapshot holds.

    Args:
        snapshot: the snapshot; without a rule state the rule begins anew.
        model: name of the model.
        seed: the session's seed.
        rule: its rule.
    """
    parameters = snapshot.tensors[PARAMETERS]
    if RULE in snapshot.tensors:
        rule_state = RuleState(snapshot.scalars, _by_slot(snapshot.tensors[RULE]))
    else:
        rule_state = rule.start(parameters)
    return SessionState(
        model,
        seed,
        rule,
        parameters,
        snapshot.tensors[BUFFERS],
        rule_state,
        snapshot.version,
        snapshot.steps,
    )


def without_rule_state(snapshot: Snapshot) -> Snapshot:
    """Return a snapshot from which a rule begins anew."""
    groups = {key: group for key, group in snapshot.tensors.items() if key != RULE}
    return replace(snapshot, tensors=groups, scalars={}, digest="")


def _by_slot(tensors: Mapping[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    slots: dict[str, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        slot, _, name = key.partition(".")
        slots.setdefault(slot, {})[name] = tensor
    return slots
