"""Heavy-ball and Nesterov momentum."""

import torch

from .base import RuleState, Tensors
from .steps import wide

SLOT = "momentum"


def with_momentum(
    state: RuleState, directions: Tensors, momentum: float, nesterov: bool = False
) -> tuple[Tensors, RuleState]:
    """Return the directions b_t = momentum * b_(t-1) + d, and the state that holds them.

    b_1 is d. With `nesterov` the direction is d + momentum * b_t. As `torch.optim.SGD` has it:
    Sutskever, Martens, Dahl, Hinton, "On the importance of initialization and momentum in deep
    learning", ICML 2013.

    Args:
        state: the state before.
        directions: d, parameter name -> tensor.
        momentum: the share of the last direction; with 0 nothing is remembered.
        nesterov: whether to look one step ahead.
    """
    if momentum == 0:
        return directions, state
    before = state.tensors.get(SLOT, {})
    after = {
        name: torch.add(wide(d), before[name], alpha=momentum)
        if name in before
        else wide(d, copy=True)
        for name, d in directions.items()
    }
    state = state.with_slot(SLOT, after)
    if not nesterov:
        return after, state
    ahead = {
        name: torch.add(wide(d), after[name], alpha=momentum) for name, d in directions.items()
    }
    return ahead, state
