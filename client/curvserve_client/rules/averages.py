"""Running means of what one batch shows only noisily."""

import torch
from torch import Tensor

from .base import RuleState, Tensors
from .steps import wide


def averaged(state: RuleState, slot: str, values: Tensors, beta: float) -> RuleState:
    """Return the state with the bias-corrected exponential mean of a slot brought up to date.

    The slot holds the corrected mean itself, m_t = sum_s beta^(t-s) x_s / sum_s beta^(t-s), moved
    by m += (x - m) (1 - beta) / w with w_t = beta w_(t-1) + 1 - beta, which is 1 - beta^t. A tensor
    that was not there before begins at its first value. Kingma, Ba, "Adam: a method for stochastic
    optimization", ICLR 2015, section 3.

    Args:
        state: the state before; its number `<slot>_weight` is w.
        slot: where the means are.
        values: x, parameter name -> tensor; half precision is averaged in float32.
        beta: the share that is kept of what was; 0 for the last value alone.
    """
    weight = beta * state.scalars.get(f"{slot}_weight", 0.0) + 1 - beta
    means = moved(state.tensors.get(slot, {}), values, (1 - beta) / weight)
    return state.with_slot(slot, means).with_scalars(**{f"{slot}_weight": weight})


def moved(means: Tensors, values: Tensors, share: float) -> dict[str, Tensor]:
    """Return m + share (x - m) for each value x; a copy of x where there is no m."""
    return {
        name: torch.lerp(means[name], wide(value), share)
        if name in means
        else wide(value, copy=True)
        for name, value in values.items()
    }
