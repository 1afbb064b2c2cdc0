"""Running means of what one batch shows only noisily, and of what is not computed at each step."""

import torch

from ..errors import InvalidRule
from .base import RuleState, Tensors
from .steps import wide


def averaged(state: RuleState, slot: str, values: Tensors, beta: float) -> RuleState:
    """Return the state with the bias-corrected exponential mean of a slot brought up to date.

    The slot holds the corrected mean itself, m_t = sum_s beta^(t-s) x_s / sum_s beta^(t-s), moved
    by m += (x - m) (1 - beta) / w with w_t = beta w_(t-1) + 1 - beta, which is 1 - beta^t. The mean
    without the correction is w m. A tensor that was not there before begins at its first value.
    Kingma, Ba, "Adam: a method for stochastic optimization", ICLR 2015, section 3.

    Args:
        state: the state before; its number `<slot>_weight` is w.
        slot: where the means are.
        values: x, parameter name -> tensor; half precision is averaged in float32.
        beta: the share that is kept of what was; 0 for the last value alone.
    """
    weight = beta * state.scalars.get(f"{slot}_weight", 0.0) + 1 - beta
    share = (1 - beta) / weight
    before = state.tensors.get(slot, {})
    means = {
        name: torch.lerp(before[name], wide(value), share)
        if name in before
        else wide(value, copy=True)
        for name, value in values.items()
    }
    return state.with_slot(slot, means).with_scalars(**{f"{slot}_weight": weight})


def is_due(state: RuleState, slot: str, interval: int, warmup: int = 0) -> bool:
    """Tell whether what a slot holds is to be computed anew.

    Args:
        state: the state before the step.
        slot: where it is kept; without it, it is due.
        interval: steps from one time to the next, counted from the first step.
        warmup: the first steps, in which it is always due.
    """
    steps = state.scalars["steps"]
    return steps < warmup or steps % interval == 0 or slot not in state.tensors


def remembered(state: RuleState, slot: str, names: Tensors) -> Tensors:
    """Return what a slot holds of the named parameters.

    Raises:
        InvalidRule: a parameter is not in it: it had no gradient when the slot was computed.
    """
    known = state.tensors[slot]
    if absent := [name for name in names if name not in known]:
        raise InvalidRule(
            f"no {slot} of {absent[0]} is known at this step",
            tensor=absent[0],
            expected="the same parameters in every step, or an interval of 1",
        )
    return {name: known[name] for name in names}
