"""Parts of a batch, computed apart and merged, are the batch, however it is divided."""

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_leaves, tree_unflatten

from curvserve.engine import Evaluation, Evaluator, Part, evaluate, evaluate_part, merge_parts
from curvserve.engine.errors import EngineError
from curvserve.engine.quantities import QUANTITIES
from tests.engine.zoo import make

NETS = ["seed_cnn", "language_model", "segmentation", "weighted_classes"]
QUICK = "seed_cnn", "weighted_classes"
MERGED = [name for name in QUANTITIES if name not in ("ekfac",)]  # an eigenvector has no sign


def apart(found: dict[str, Any], expected: dict[str, Any]) -> float:
    """The largest difference of two results, over the norm of the result of the parameter."""
    assert found.keys() == expected.keys()
    pairs = [
        pair
        for name in expected
        for pair in zip(tree_leaves(found[name]), tree_leaves(expected[name]), strict=True)
    ]
    assert all(own.shape == wanted.shape for own, wanted in pairs)
    return max(float((own - wanted).norm() / (wanted.norm() or 1.0)) for own, wanted in pairs)


def computed(case: Any, quantities: list[str], cuts: list[int], seed: int = 5) -> Any:
    """The parts between cuts."""
    return [
        evaluate_part(
            case.model,
            case.loss,
            case.inputs[start:stop],
            case.targets,
            quantities,
            Part(start, len(case.inputs)),
            seed=seed,
            mc_samples=2,
        )
        for start, stop in zip([0, *cuts], [*cuts, len(case.inputs)], strict=True)
        if stop > start
    ]


@pytest.mark.parametrize("quantity", MERGED)
@pytest.mark.parametrize(
    "net",
    [n if n in QUICK else pytest.param(n, marks=pytest.mark.campaign) for n in NETS],
)
def test_merged_parts_are_the_batch(net: str, quantity: str) -> None:
    case = make(net)
    if not QUANTITIES[quantity].divisible:
        with pytest.raises(ValueError, match="of the whole batch only"):
            computed(case, [quantity], [1])
        return
    arguments = (case.model, case.loss, case.inputs, case.targets, ["grad", quantity])
    try:
        whole = evaluate(*arguments, seed=5, mc_samples=2)
    except EngineError as refusal:
        with pytest.raises(type(refusal)):
            computed(case, ["grad", quantity], [1])
        return
    parts = computed(case, ["grad", quantity], [1, len(case.inputs) - 1])
    merged = merge_parts(parts, ["grad", quantity], mc_samples=2)
    torch.testing.assert_close(merged.loss, whole.loss, rtol=1e-12, atol=0)
    for field in ("grad", quantity):
        assert apart(merged.quantities[field], whole.quantities[field]) < 1e-11


@pytest.mark.parametrize("quantity", [name for name in MERGED if QUANTITIES[name].divisible])
def test_a_part_may_have_nothing_but_ignored_targets(quantity: str) -> None:
    case = make("weighted_classes")
    assert (case.targets == case.loss.ignore_index).any()
    arguments, fields = (case.model, case.loss, case.inputs, case.targets), ["grad", quantity]
    whole = evaluate(*arguments, fields, seed=5, mc_samples=2)
    parts = computed(case, fields, list(range(1, len(case.inputs))))
    merged = merge_parts(parts, fields, mc_samples=2)
    for found in (merged, evaluate(*arguments, fields, seed=5, mc_samples=2, chunk=1)):
        torch.testing.assert_close(found.loss, whole.loss, rtol=1e-12, atol=0)
        for field in fields:
            assert apart(found.quantities[field], whole.quantities[field]) < 1e-11


@settings(deadline=None, max_examples=15)
@given(st.data(), st.sampled_from(NETS))
def test_however_it_is_divided(data: st.DataObject, net: str) -> None:
    case = make(net)
    samples = len(case.inputs)
    cuts = sorted(data.draw(st.lists(st.integers(0, samples), max_size=4)))
    fields = ["grad", "diag_ggn_mc", "grad_batch"]
    whole = evaluate(case.model, case.loss, case.inputs, case.targets, fields, seed=5, mc_samples=2)
    merged = merge_parts(computed(case, fields, cuts), fields, mc_samples=2)
    for field in fields:
        assert apart(merged.quantities[field], whole.quantities[field]) < 1e-11


def test_what_is_no_samples_own_adds_up() -> None:
    case = make("seed_cnn")
    fields = ["grad", "diag_ggn_mc", "kfac", "variance", "diag_h"]
    whole = evaluate(case.model, case.loss, case.inputs, case.targets, fields, seed=5, mc_samples=2)
    first, second = computed(case, fields, [2])
    assert all(isinstance(leaf, Tensor) for leaf in tree_leaves(first.quantities["kfac"]))
    leaves, spec = tree_flatten((first.loss, first.quantities))
    others = tree_leaves((second.loss, second.quantities))
    loss, added = tree_unflatten([a + b for a, b in zip(leaves, others, strict=True)], spec)
    merged = merge_parts([Evaluation(loss, first.outputs, added)], fields, mc_samples=2)
    for field in fields:
        assert apart(merged.quantities[field], whole.quantities[field]) < 1e-11


def test_a_program_of_a_part_has_the_bits_of_the_eager_part() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 4))
    loss = nn.CrossEntropyLoss(weight=torch.tensor([1.0, 2.0, 0.5, 1.0]))
    evaluator, fields = Evaluator(model, loss, eager_calls=1), ["grad", "diag_ggn_mc"]
    for seed in range(6):
        x, y = torch.randn(9, 6), torch.randint(4, (9,))
        for start, stop in ((0, 4), (4, 9)):
            part = Part(start, 9)
            found = evaluator(x[start:stop], y, fields, seed=seed, part=part)
            expected = evaluate_part(model, loss, x[start:stop], y, fields, part, seed=seed)
            assert torch.equal(found.loss, expected.loss)
            for field in fields:
                for name, tensor in expected.quantities[field].items():
                    assert torch.equal(found.quantities[field][name], tensor)
    assert evaluator.compiled() == 2 and not evaluator.refusals()
