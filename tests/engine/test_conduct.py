"""How the engine behaves over many calls: threads, memory, hooks, nesting, seeds, chunks."""

import copy
import threading
import weakref
from contextlib import ExitStack, nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from curvserve.engine import backpack, context, evaluate, extend, reproducible
from curvserve.engine.extensions import HBP, HMP, BatchGrad, DiagGGNExact, SumGradSquared
from curvserve.engine.hbp_options import (
    BackpropStrategy,
    Curvature,
    ExpectationApproximation,
    LossHessianStrategy,
)
from curvserve.engine.layers import Flatten
from curvserve.engine.products import plain_kernels
from curvserve.engine.quantities import EXTENSIONS, Quantity
from curvserve.engine.recording import is_attached
from tests.engine.live import counting_tensors
from tests.engine.test_quantities import collected, largest_error, run
from tests.engine.zoo import ZOO, classes, make


def net() -> tuple[nn.Module, nn.Module]:
    model = nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 2)).double()
    return extend(model), extend(nn.CrossEntropyLoss())


def batch(n: int = 4) -> tuple[Tensor, Tensor]:
    return torch.randn(n, 3).double(), classes(n, 2)


def test_threads_that_choose_kernels_do_not_disturb_each_other() -> None:
    """Products with Hessians run attention again by plain operations, here in eight threads.

    Which kernel runs is a setting of the process: who is in between must not get the fused one.
    """
    torch.manual_seed(0)
    layer, x = nn.TransformerEncoderLayer(2, 1, 2, 0.0, batch_first=True), torch.randn(2, 2, 2)
    models, loss = [extend(copy.deepcopy(layer)) for _ in range(9)], extend(nn.MSELoss())

    def product(model: nn.Module) -> Tensor:
        weight = model.self_attn.in_proj_weight
        with backpack(HMP()):
            loss(model(x), torch.zeros_like(x)).backward()
        return weight.hmp(weight)

    alone = product(models.pop())
    start, found = threading.Barrier(8), []

    def work(model: nn.Module) -> None:
        start.wait()
        found.extend(product(model) for _ in range(40))

    threads = [threading.Thread(target=work, args=(model,)) for model in models]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 320
    torch.testing.assert_close(torch.stack(found), alone.expand(320, -1, -1))
    assert torch.backends.cuda.flash_sdp_enabled()  # the setting is what it was


def test_blocks_that_choose_kernels_overlap() -> None:
    """None waits for another: on a GPU a hook may come to one while its thread is in one."""
    inside, done = threading.Event(), threading.Event()

    def hold() -> None:
        with plain_kernels():
            inside.set()
            assert done.wait(30)

    other = threading.Thread(target=hold)
    other.start()
    assert inside.wait(30)
    with plain_kernels():
        done.set()
        other.join()
        assert not torch.backends.cuda.flash_sdp_enabled() and not torch.backends.cudnn.enabled
    assert torch.backends.cuda.flash_sdp_enabled() and torch.backends.cudnn.enabled


def test_reproducible_blocks_overlap_and_end_in_any_order() -> None:
    def chosen() -> tuple[object, ...]:
        memory: Any = torch.utils.deterministic
        cuda = torch.backends.cuda.mem_efficient_sdp_enabled()
        mode, cudnn = torch.get_deterministic_debug_mode(), torch.backends.cudnn.deterministic
        return mode, cudnn, cuda, memory.fill_uninitialized_memory

    before = chosen()
    first, second = ExitStack(), ExitStack()
    first.enter_context(reproducible())
    second.enter_context(reproducible())
    first.close()  # as a server does that ends before another of its process
    assert chosen() == (1, True, False, False)
    second.close()
    assert chosen() == before != (1, True, False, False)


def test_a_block_in_one_thread_is_none_in_another() -> None:
    model, loss = net()
    x, y = batch()
    inside, done = threading.Event(), threading.Event()

    def hold() -> None:
        with backpack(), torch.no_grad():
            inside.set()
            assert done.wait(30)

    other = threading.Thread(target=hold)
    other.start()
    assert inside.wait(30)
    with backpack(DiagGGNExact()):
        loss(model(x), y).backward()
    done.set()
    other.join()
    assert hasattr(model[0].weight, "diag_ggn_exact")


def test_what_a_block_asks_for_lives_as_long_as_the_block() -> None:
    """Torch's own storage holds it: torch 2.11 takes no reference to what it is given to hold."""
    model, loss = net()
    x, y = batch()
    for _ in range(1000):
        request = context.Request((BatchGrad(),))
        held = weakref.ref(request)
        before = context.enter(request)
        del request
        assert context.current() is held()
        loss(model(x), y).backward()
        context.restore(before)
        assert held() is None
        assert context.current() is None


def instance(kind: type[Quantity]) -> Quantity:
    if kind is not HBP:
        return kind()
    return HBP(
        Curvature.GGN,
        LossHessianStrategy.SUM,
        BackpropStrategy.BATCH_AVERAGE,
        ExpectationApproximation.BOTEV_MARTENS,
    )


@pytest.mark.parametrize("passes", [60, pytest.param(300, marks=pytest.mark.campaign)])
@pytest.mark.parametrize("backward", [True, False], ids=["with backward", "without backward"])
@pytest.mark.parametrize("kind", EXTENSIONS, ids=lambda kind: kind.__name__)
def test_many_passes_leave_no_tensor_more(
    kind: type[Quantity], backward: bool, passes: int
) -> None:
    extension = instance(kind)
    warned = pytest.warns(UserWarning, match="no extended loss ran backward")
    with counting_tensors() as live:
        model = extend(nn.Sequential(nn.Linear(2, 2), nn.Tanh(), nn.Linear(2, 2)).double())
        loss, x, y = extend(nn.CrossEntropyLoss()), torch.randn(2, 2).double(), classes(2, 2)

        def step() -> None:
            with nullcontext() if backward else warned, backpack(extension):
                value = loss(model(x), y)
                if backward:
                    value.backward()
            for p in model.parameters() if backward else ():
                if callable(found := getattr(p, extension.savefield)):
                    found(p)  # a product runs the model again

        step()
        once = live()
        for _ in range(passes - 1):
            step()
        assert live() == once


def test_two_forward_passes_in_flight() -> None:
    model, loss = net()
    (x1, y1), (x2, y2) = batch(), batch(5)
    first, second = loss(model(x1), y1), loss(model(x2), y2)
    with backpack(BatchGrad()):
        second.backward()
        assert model[0].weight.grad_batch.shape == (5, 8, 3)
        first.backward()
    assert model[0].weight.grad_batch.shape == (4, 8, 3)
    expected = evaluate(model, loss, x1, y1, ["grad_batch"]).quantities["grad_batch"]
    assert torch.equal(model[0].weight.grad_batch, expected["0.weight"])


def test_a_kept_graph_can_be_used_twice() -> None:
    model, loss = net()
    value = loss(model(batch()[0]), batch()[1])
    found = []
    for keep in (True, False):
        with backpack(BatchGrad(), DiagGGNExact()):
            value.backward(retain_graph=keep)
        found.append((model[0].weight.grad_batch, model[0].weight.diag_ggn_exact))
    assert torch.equal(found[0][0], found[1][0])
    assert torch.equal(found[0][1], found[1][1])


def test_results_are_overwritten_and_survive_zero_grad() -> None:
    model, loss = net()
    x, y = batch()
    for _ in range(2):
        with backpack(DiagGGNExact()):
            loss(model(x), y).backward()
    once = evaluate(model, loss, x, y, ["diag_ggn_exact"]).quantities["diag_ggn_exact"]
    model.zero_grad()
    assert torch.equal(model[0].weight.diag_ggn_exact, once["0.weight"])


def test_nested_blocks_count_innermost() -> None:
    model, loss = net()
    x, y = batch()
    with backpack(BatchGrad()):
        with backpack(DiagGGNExact()):
            loss(model(x), y).backward()
        assert not hasattr(model[0].weight, "grad_batch")
        assert hasattr(model[0].weight, "diag_ggn_exact")
        loss(model(x), y).backward()
    assert hasattr(model[0].weight, "grad_batch")


def test_nothing_is_computed_outside_a_block() -> None:
    model, loss = net()
    x, y = batch()
    loss(model(x), y).backward()
    assert vars(model[0].weight) == {} or not hasattr(model[0].weight, "grad_batch")


@pytest.mark.parametrize("extension", [BatchGrad(), DiagGGNExact()])
def test_the_extension_hook_runs_backward_with_the_results_there(extension: object) -> None:
    model, loss = net()
    seen: list[nn.Module] = []

    def hook(module: nn.Module) -> None:
        seen.append(module)
        assert all(hasattr(p, extension.savefield) for p in module.parameters())

    x, y = batch()
    with backpack(extension, extension_hook=hook):
        loss(model(x), y).backward()
    assert seen == [loss, model[2], model[0]]


def test_the_extension_hook_can_compact_as_it_goes() -> None:
    model, loss = net()

    def norms(module: nn.Module) -> None:
        for p in module.parameters(recurse=False):
            p.norms = p.grad_batch.flatten(1).norm(dim=1)
            del p.grad_batch

    x, y = batch()
    with backpack(BatchGrad(), extension_hook=norms):
        loss(model(x), y).backward()
    assert all(p.norms.shape == (4,) and not hasattr(p, "grad_batch") for p in model.parameters())


def test_extend_is_idempotent_and_returns_the_module() -> None:
    model, loss = net()
    assert extend(model) is model
    assert extend(loss) is loss
    assert len(model[0]._forward_hooks) == 1
    assert len(loss._forward_hooks) == 1


def test_a_copy_of_an_extended_model_works_alone() -> None:
    model, loss = net()
    x, y = batch()
    twin = copy.deepcopy(model)
    with backpack(DiagGGNExact()):
        loss(twin(x), y).backward()
    assert hasattr(twin[0].weight, "diag_ggn_exact")
    assert not hasattr(model[0].weight, "diag_ggn_exact")


def test_debug_logs_what_is_computed(caplog: pytest.LogCaptureFixture) -> None:
    model, loss = net()
    x, y = batch()
    with caplog.at_level("INFO", "curvserve.engine"), backpack(DiagGGNExact(), debug=True):
        loss(model(x), y).backward()
    assert "DiagGGNExact: weight, bias of Linear by Linear" in caplog.text.replace(
        "bias, weight", "weight, bias"
    )


def test_flatten_is_torchs() -> None:
    x = torch.randn(2, 3, 4)
    assert torch.equal(Flatten()(x), x.flatten(1))


@pytest.mark.parametrize("name", ["seed_cnn", "language_model", "segmentation", "weighted_classes"])
def test_chunks_change_nothing(name: str) -> None:
    case = make(name)
    quantities = ("grad", "grad_batch", "diag_ggn_mc", "diag_ggn_exact")
    arguments = (case.model, case.loss, case.inputs, case.targets, quantities)
    whole = evaluate(*arguments, seed=5, mc_samples=2)
    parts = evaluate(*arguments, seed=5, mc_samples=2, chunk=2)
    torch.testing.assert_close(parts.loss, whole.loss, rtol=1e-12, atol=0)
    torch.testing.assert_close(parts.outputs, whole.outputs, rtol=1e-12, atol=1e-14)
    for field in quantities:
        assert largest_error(parts.quantities[field], whole.quantities[field]) < 1e-12


def test_the_seed_decides_the_draws_alone() -> None:
    case = make("seed_cnn")
    arguments = (case.model, case.loss, case.inputs, case.targets, ["diag_ggn_mc"])
    state = torch.get_rng_state()
    first = evaluate(*arguments, seed=7).quantities["diag_ggn_mc"]
    assert torch.equal(torch.get_rng_state(), state)
    torch.rand(3)
    again = evaluate(*arguments, seed=7).quantities["diag_ggn_mc"]
    other = evaluate(*arguments, seed=8).quantities["diag_ggn_mc"]
    assert all(torch.equal(first[k], again[k]) for k in first)
    assert any(not torch.equal(first[k], other[k]) for k in first)


def test_evaluate_leaves_the_model_as_it_was() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))
    x, y = torch.randn(4, 3), classes(4, 2)
    evaluate(model, nn.CrossEntropyLoss(), x, y, ["grad", "grad_batch", "diag_ggn_mc"])
    assert not any(is_attached(m) or m._forward_pre_hooks for m in model.modules())
    assert all(p.grad is None and vars(p) == {} for p in model.parameters())


def test_parameters_that_the_loss_does_not_reach_get_zeros() -> None:
    model = nn.ModuleDict({"used": nn.Linear(3, 2), "idle": nn.Linear(5, 5)})
    model.forward = lambda x: model["used"](x)  # type: ignore[method-assign]  # a forward of its own is the case
    x, y = torch.randn(4, 3), classes(4, 2)
    found = evaluate(model, nn.CrossEntropyLoss(), x, y, ["grad", "grad_batch", "diag_ggn_exact"])
    assert torch.equal(found.quantities["grad"]["idle.weight"], torch.zeros(5, 5))
    assert torch.equal(found.quantities["grad_batch"]["idle.bias"], torch.zeros(4, 5))
    assert torch.equal(found.quantities["diag_ggn_exact"]["idle.weight"], torch.zeros(5, 5))


@pytest.mark.parametrize("name", ZOO)
def test_a_second_batch_of_the_same_shape_uses_the_plan_rightly(name: str) -> None:
    case, other = make(name), make(name, seed=1)
    run(case, BatchGrad())
    case.model.load_state_dict(other.model.state_dict())
    case.inputs, case.targets = other.inputs, other.targets
    case.loss.load_state_dict(other.loss.state_dict())
    run(case, BatchGrad())
    run(other, BatchGrad())
    assert largest_error(collected(case, "grad_batch"), collected(other, "grad_batch")) < 1e-12


def test_quantities_leave_the_gradient_alone() -> None:
    """A norm's rows may be the cotangent itself: squaring them in place would spoil it."""
    plain = nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4), nn.LayerNorm(4), nn.Linear(4, 2))
    plain.double()
    x, y = batch()
    nn.CrossEntropyLoss()(plain(x), y).backward()
    model, loss = extend(copy.deepcopy(plain)), extend(nn.CrossEntropyLoss())
    model.zero_grad()
    with backpack(SumGradSquared(), BatchGrad(), DiagGGNExact()):
        loss(model(x), y).backward()
    for p, q in zip(model.parameters(), plain.parameters(), strict=True):
        assert torch.equal(p.grad, q.grad)
