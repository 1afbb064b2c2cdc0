"""Programs of flat operations: the bits of the eager pass, or none."""

import random
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._pytree import tree_leaves

from curvserve.engine import Evaluation, Evaluator, evaluate
from curvserve.engine.errors import NonFiniteError
from curvserve.engine.quantities import QUANTITIES
from tests.engine.zoo import ZOO, make

QUICK = {
    "seed_cnn",
    "transformer_encoder",
    "tied_weights",
    "recurrent",
    "residual_with_inplace_relu",
    "checkpointed",
    "soft_targets",
}
VALUES = ("looks at a value", "torch._C.Generator")  # torch 2.11 writes no generator down before
WITHOUT = {
    "first_of_two_results_of_one_node": VALUES,  # the engine compares what it has computed again
    "second_of_two_results_of_one_node": VALUES,
}


def leaves(found: Evaluation) -> list[Tensor]:
    return tree_leaves((found.loss, found.outputs, found.quantities))


def same_bits(own: Evaluation, wanted: Evaluation) -> bool:
    pairs = zip(leaves(own), leaves(wanted), strict=True)
    return all(torch.equal(a, b) and a.stride() == b.stride() for a, b in pairs)


@pytest.mark.parametrize(
    "name",
    [n if n in QUICK | set(WITHOUT) else pytest.param(n, marks=pytest.mark.campaign) for n in ZOO],
)
def test_it_has_the_bits_of_the_eager_pass(name: str) -> None:
    cases = make(name), make(name, 1)
    model, loss = cases[0].model, cases[0].loss
    evaluator = Evaluator(model, loss, eager_calls=1)
    for number in range(5):
        x, y = cases[number % 2].inputs, cases[number % 2].targets
        for p in model.parameters():
            p.data = p.data * 1.01  # as a server binds another version
        torch.manual_seed(number)
        own = evaluator(x, y, ["grad", "diag_ggn_mc"], seed=number)
        torch.manual_seed(number)
        assert same_bits(own, evaluate(model, loss, x, y, ["grad", "diag_ggn_mc"], seed=number))
    if reasons := WITHOUT.get(name):
        assert evaluator.compiled() == 0
        assert any(reason in evaluator.refusals()[0] for reason in reasons)
    else:
        assert evaluator.compiled() == 1, evaluator.refusals()


@pytest.mark.parametrize("quantity", ["diag_ggn_mc", "kflr", "kfac"])
def test_draws_from_the_global_generator_are_the_eager_ones(quantity: str) -> None:
    case = make("mlp")
    evaluator = Evaluator(case.model, case.loss, eager_calls=1)
    for number in range(4):
        torch.manual_seed(number)
        own, after = evaluator(case.inputs, case.targets, [quantity]), torch.rand(1)
        torch.manual_seed(number)
        wanted = evaluate(case.model, case.loss, case.inputs, case.targets, [quantity])
        assert same_bits(own, wanted) and after == torch.rand(1)
    assert evaluator.compiled() == 1


@pytest.mark.parametrize("quantity", QUANTITIES)
def test_every_quantity_has_the_bits_of_the_eager_pass(quantity: str) -> None:
    case = make("mlp")
    evaluator = Evaluator(case.model, case.loss, eager_calls=1)
    for seed in range(4):
        own = evaluator(case.inputs, case.targets, [quantity], seed=seed, mc_samples=2)
        wanted = evaluate(
            case.model, case.loss, case.inputs, case.targets, [quantity], seed=seed, mc_samples=2
        )
        if all(isinstance(leaf, Tensor) for leaf in leaves(wanted)):
            assert same_bits(own, wanted)
        else:
            assert not evaluator.compiled()


def batches(*shape: int, count: int = 5) -> list[tuple[Tensor, Tensor]]:
    return [(torch.randn(*shape), torch.randint(3, shape[:1])) for _ in range(count)]


def test_random_layers_and_buffers_go_on_as_they_would() -> None:
    model = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Dropout(), nn.Linear(6, 3))
    other = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Dropout(), nn.Linear(6, 3))
    other.load_state_dict(model.state_dict())
    evaluator = Evaluator(model, nn.CrossEntropyLoss(), eager_calls=1)
    for seed, (x, y) in enumerate(batches(8, 4)):
        torch.manual_seed(seed)
        own = evaluator(x, y, ["grad"], seed=seed)
        after = torch.rand(1)
        torch.manual_seed(seed)
        wanted = evaluate(other, nn.CrossEntropyLoss(), x, y, ["grad"], seed=seed)
        assert same_bits(own, wanted) and after == torch.rand(1)
        assert all(map(torch.equal, model.buffers(), other.buffers()))
    assert evaluator.compiled() == 1


def test_attention_by_plain_operations_is_written_down() -> None:
    case = make("transformer_encoder")
    x = torch.cat([case.inputs] * (65 // case.inputs.shape[1] + 1), 1)  # too long for products
    evaluator = Evaluator(case.model, case.loss, eager_calls=1)
    with sdpa_kernel(SDPBackend.MATH):
        for seed in range(4):
            own = evaluator(x, case.targets, ["grad", "diag_ggn_mc"], seed=seed)
            given = case.model, case.loss, x, case.targets, ["grad", "diag_ggn_mc"]
            assert same_bits(own, evaluate(*given, seed=seed))
    assert evaluator.compiled() == 1, evaluator.refusals()


def test_each_shape_mode_and_choice_of_parameters_has_its_own() -> None:
    model = nn.Sequential(nn.Linear(4, 6), nn.Dropout(), nn.Linear(6, 3))
    evaluator = Evaluator(model, nn.CrossEntropyLoss(), eager_calls=1)

    def several(samples: int) -> None:
        for x, y in batches(samples, 4, count=4):
            torch.manual_seed(0)
            own = evaluator(x, y, ["grad"], seed=0)
            torch.manual_seed(0)
            assert same_bits(own, evaluate(model, nn.CrossEntropyLoss(), x, y, ["grad"], seed=0))

    several(8)
    several(5)
    assert evaluator.compiled() == 2
    model.eval()
    several(5)
    model[0].requires_grad_(False)
    several(5)
    assert evaluator.compiled() == 4
    for samples in range(6, 30):
        several(samples)
    assert evaluator.compiled() == 16  # the oldest are let go


def test_what_is_not_finite_is_said_as_it_would_be() -> None:
    model = nn.Sequential(nn.Linear(4, 3))
    evaluator = Evaluator(model, nn.CrossEntropyLoss(), eager_calls=1)
    for x, y in batches(8, 4, count=4):
        evaluator(x, y, ["diag_ggn_mc"], seed=0)
    assert evaluator.compiled() == 1
    with pytest.raises(NonFiniteError, match="NaN or infinity"):
        evaluator(x * torch.inf, y, ["diag_ggn_mc"], seed=0)


def test_a_pass_is_needed_before_a_program() -> None:
    with pytest.raises(ValueError, match="eager_calls must be 1 or more"):
        Evaluator(nn.Linear(4, 3), nn.CrossEntropyLoss(), eager_calls=0)


class Fickle(nn.Module):
    """Does something else in each call, by what Python alone knows."""

    def __init__(self, choose: Callable[[Tensor], float]) -> None:
        super().__init__()
        self.layer, self.choose = nn.Linear(4, 3), choose

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x) * self.choose(x)


@pytest.mark.parametrize(
    ("choose", "reason"),
    [
        (lambda x: random.random(), "other numbers"),
        (lambda x: float(x.numpy().max()), "other numbers"),
        (lambda x: float(x.max()), "looks at a value"),
        (lambda x: 2.0 if x.sum() > 0 else 3.0, "looks at a value"),
    ],
)
def test_what_no_program_can_hold_stays_eager(
    choose: Callable[[Tensor], float], reason: str
) -> None:
    model = Fickle(choose)
    evaluator = Evaluator(model, nn.CrossEntropyLoss(), eager_calls=1)
    for seed, (x, y) in enumerate(batches(8, 4)):
        random.seed(seed)
        own = evaluator(x, y, ["grad"], seed=seed)
        random.seed(seed)
        if seed > 1:
            assert same_bits(own, evaluate(model, nn.CrossEntropyLoss(), x, y, ["grad"], seed=seed))
    assert evaluator.compiled() == 0
    assert reason in evaluator.refusals()[0]


class Chosen(nn.Module):
    """Looks at some of its features, by their numbers or by a mask."""

    def __init__(self, chosen: Tensor) -> None:
        super().__init__()
        self.layer = nn.Linear(2, 3)
        self.register_buffer("chosen", chosen)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x[:, self.chosen])


@pytest.mark.parametrize(
    ("chosen", "refused"),
    [(torch.tensor([0, 3]), False), (torch.tensor([True, False, False, True]), True)],
)
def test_numbers_that_choose_leave_the_shape_alone_and_masks_do_not(
    chosen: Tensor, *, refused: bool
) -> None:
    model = Chosen(chosen)
    evaluator = Evaluator(model, nn.CrossEntropyLoss(), eager_calls=1)
    for x, y in batches(8, 4, count=4):
        own = evaluator(x, y, ["grad"], seed=0)
        assert same_bits(own, evaluate(model, nn.CrossEntropyLoss(), x, y, ["grad"], seed=0))
    assert evaluator.compiled() == (not refused)
    assert ["the values decide what shape" in r for r in evaluator.refusals()] == [True] * refused


@torch.library.custom_op("curvserve_tests::positive", mutates_args=())
def positive(x: Tensor) -> Tensor:
    """The lines that begin above zero; nobody tells that their number depends on the values."""
    return x[x[:, 0] > 0].clone()


def test_a_program_that_fits_one_batch_only_is_given_up() -> None:
    def choose(x: Tensor) -> Tensor:
        kept = positive(x)
        return (kept + torch.zeros(kept.shape)).sum()

    model = Fickle(choose)  # type: ignore[arg-type]  # it is called in place of a number
    evaluator = Evaluator(model, nn.CrossEntropyLoss(), eager_calls=1)
    for number in range(4):
        x, y = torch.ones(8, 4), torch.arange(8) % 3
        x[:number] = -1
        own = evaluator(x, y, ["grad"], seed=0)
        assert same_bits(own, evaluate(model, nn.CrossEntropyLoss(), x, y, ["grad"], seed=0))
    assert evaluator.compiled() == 0
    assert "must match the size" in evaluator.refusals()[0]
