"""Groups of parameters: each is a step of its own, whatever the others do."""

import pytest
import torch
from curvserve_client.rules import (
    SGD,
    Adam,
    DiagGGN,
    Rule,
    RuleGroup,
    RuleState,
    Sophia,
    update_groups,
)
from torch import Tensor

Tensors = dict[str, Tensor]

SHAPES = {"a": (3, 4), "b": (5,), "c": (2, 2)}


def drawn(seed: int) -> Tensors:
    generator = torch.Generator().manual_seed(seed)
    return {
        name: torch.randn(*shape, generator=generator, dtype=torch.float64)
        for name, shape in SHAPES.items()
    }


def quantities(step: int) -> dict[str, Tensors]:
    squares = {name: tensor.square() for name, tensor in drawn(100 + step).items()}
    return {"grad": drawn(step), "diag_ggn_mc": squares}


def alone(rule: Rule, names: list[str], steps: int) -> tuple[Tensors, RuleState]:
    """The parameters of one group after steps without the others, and what is remembered."""
    moved = {name: tensor for name, tensor in drawn(999).items() if name in names}
    state = rule.start(moved)
    for step in range(steps):
        own = {
            quantity: {name: tensor for name, tensor in tensors.items() if name in names}
            for quantity, tensors in quantities(step).items()
        }
        update = rule.update(moved, own, state, loss=1.0, loss_at=lambda _: 0.0)
        moved, state = dict(update.parameters), update.state
    return moved, state


PAIRS: list[tuple[Rule, Rule]] = [
    (DiagGGN(0.1, momentum=0.9), DiagGGN(0.3, 0.5, beta2=0.9, curvature_interval=3)),
    (DiagGGN(0.1, kl_clip=1e-3), DiagGGN(0.1, kl_clip=1e-3)),
    (SGD(0.1, momentum=0.5), SGD(0.2)),
    (Adam(0.1), Adam(0.01, weight_decay=0.1)),
    (Sophia(0.1), Sophia(0.2, curvature_interval=2)),
]


@pytest.mark.parametrize("first, second", PAIRS, ids=lambda rule: rule.name)
def test_each_group_moves_as_if_it_were_alone(first: Rule, second: Rule) -> None:
    groups = [RuleGroup(("a",), first), RuleGroup(("c",), second)]
    moved: Tensors = drawn(999)
    state = first.start(moved)
    for step in range(7):
        update = update_groups(
            groups, moved, quantities(step), state, loss=1.0, loss_at=lambda _: 0.0
        )
        moved, state = dict(update.parameters), update.state
    a, of_a = alone(first, ["a"], 7)
    c, of_c = alone(second, ["c"], 7)
    assert torch.equal(moved["a"], a["a"])
    assert torch.equal(moved["b"], drawn(999)["b"])
    assert torch.equal(moved["c"], c["c"])
    assert state.scalars["steps"] == of_a.scalars["steps"]
    assert {k: v for k, v in state.scalars.items() if k.endswith("#1")} == {
        f"{name}#1": value for name, value in of_c.scalars.items()
    }


def test_what_each_group_tells_is_told_apart() -> None:
    groups = [RuleGroup(("a",), DiagGGN(damping=1.0)), RuleGroup(("b", "c"), DiagGGN(damping=2.0))]
    parameters = drawn(999)
    update = update_groups(
        groups, parameters, quantities(0), RuleState(), loss=1.0, loss_at=lambda _: 0.0
    )
    assert update.metrics == {"damping": 1.0, "damping#1": 2.0}


def test_one_group_of_everything_is_the_rule_itself() -> None:
    rule, parameters = DiagGGN(0.1, momentum=0.9, beta2=0.5), drawn(999)
    state = RuleState()
    whole = rule.update(parameters, quantities(0), state, loss=1.0, loss_at=lambda _: 0.0)
    grouped = update_groups(
        [RuleGroup(tuple(SHAPES), rule)],
        parameters,
        quantities(0),
        state,
        loss=1.0,
        loss_at=lambda _: 0.0,
    )
    assert all(torch.equal(whole.parameters[n], grouped.parameters[n]) for n in SHAPES)
    assert whole.state.scalars == grouped.state.scalars
    assert whole.state.tensors.keys() == grouped.state.tensors.keys()
