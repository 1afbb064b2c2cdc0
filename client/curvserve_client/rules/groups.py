"""One step in which groups of parameters have options of their own."""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from .base import LossAt, Quantities, Rule, RuleState, Tensors, Update


@dataclass(frozen=True)
class RuleGroup:
    """Parameters that are stepped alike.

    Attributes:
        parameters: their names.
        rule: how they are stepped.
    """

    parameters: Sequence[str]
    rule: Rule


def update_groups(
    groups: Sequence[RuleGroup],
    parameters: Tensors,
    quantities: Quantities,
    state: RuleState,
    *,
    loss: Tensor | float,
    loss_at: LossAt,
) -> Update:
    """Return the parameters and the state after each group's rule has updated its own.

    As with the groups of a `torch.optim.Optimizer`, each is a step of its own: its norms are over
    its own parameters, and its numbers are counted apart. Those of the group i > 0 are kept, and
    told in the metrics, as `name#i`. A parameter of no group stays as it is.

    Args:
        groups: disjoint; none needs a gradient for all of its parameters.
        parameters: as in `Rule.update`; likewise the others.
        quantities: quantity -> parameter name -> tensor.
        state: the state before the step.
        loss: the loss of the batch before the step.
        loss_at: gives the loss of the same batch at other parameters.
    """
    moved = dict(parameters)
    scalars, tensors = dict(state.scalars), {k: dict(v) for k, v in state.tensors.items()}
    metrics: dict[str, float | Tensor] = {}
    for number, group in enumerate(groups):
        mark = _mark(number)
        own = set(group.parameters)
        update = group.rule.update(
            _of(parameters, own),
            {quantity: _of(tensors, own) for quantity, tensors in quantities.items()},
            group_state(state, number, group),
            loss=loss,
            loss_at=loss_at,
        )
        moved.update(update.parameters)
        scalars |= {name + mark: value for name, value in update.state.scalars.items()}
        metrics |= {name + mark: value for name, value in update.metrics.items()}
        for slot, found in update.state.tensors.items():
            tensors.setdefault(slot, {}).update(found)
    return Update(moved, RuleState(scalars, tensors), metrics)


def group_state(state: RuleState, number: int, group: RuleGroup) -> RuleState:
    """Return what is remembered of one group.

    Args:
        state: what is remembered of all.
        number: which of the groups it is.
        group: the group.
    """
    return RuleState(_own_scalars(state, _mark(number)), _own_tensors(state, set(group.parameters)))


def _mark(number: int) -> str:
    return f"#{number}" if number else ""


def _of(tensors: Tensors, names: set[str]) -> Tensors:
    return {name: tensor for name, tensor in tensors.items() if name in names}


def _own_tensors(state: RuleState, names: set[str]) -> dict[str, Tensors]:
    """Return a group's slots; one that holds nothing of it is not there."""
    slots = {slot: _of(tensors, names) for slot, tensors in state.tensors.items()}
    return {slot: own for slot, own in slots.items() if own}


def _own_scalars(state: RuleState, mark: str) -> dict[str, float]:
    """Return a group's numbers; a group that has none yet begins with the first one's."""
    shared = {name: value for name, value in state.scalars.items() if "#" not in name}
    if not mark:
        return shared
    own = {
        name.removesuffix(mark): value
        for name, value in state.scalars.items()
        if name.endswith(mark)
    }
    return shared | own
