"""CUDA graphs: what goes into their memory and comes out of it, and what cannot be one.

Where there is no GPU, a recorder of these tests takes the graph's place: it runs the operations
again, on the same memory, and writes over its results.
"""

from collections.abc import Callable, Iterable, Iterator

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses import FakeTensorMode
from torch.fx import GraphModule

from curvserve.engine import Evaluation, Evaluator, compiled, evaluate, reproducible
from curvserve.engine.cuda_graphs import Captured, Recorder, obstacle
from curvserve.engine.errors import NonFiniteError
from curvserve.engine.programs import written_down
from curvserve.engine.quantities import QUANTITIES
from curvserve.engine.rewriting import shortened
from curvserve.models import Model, resolve
from curvserve.models.dry_run import draw
from tests.engine.test_compiled import QUICK, leaves, same_bits
from tests.engine.zoo import Case, make
from tests.gpu import on_gpu

pytestmark = [
    # torch says so where a product of matrices is the first that a thread asks of the GPU
    pytest.mark.filterwarnings("ignore:Attempting to run cuBLAS, but there was no current CUDA"),
    # as cuDNN's nets are once another version is bound
    pytest.mark.filterwarnings("ignore:RNN module weights are not part of single contiguous"),
]
DEVICES = ["cpu", pytest.param("cuda", marks=on_gpu)]
HERE = {"seed_cnn", "transformer_encoder", "checkpointed", "grad_batch", "kfac", "ekfac", "diag_h"}
"""What is recorded on a CPU too: how its numbers come about makes no difference there."""
EAGER = {
    *("diag_h", "diag_h_batch", "kfra"),  # look at a value
    *("hutchinson_diagonal", "hutchinson_trace"),  # have a generator of their own
    *("ggnmp", "hmp", "pchmp"),  # give functions, no tensors
}
LOSS = nn.CrossEntropyLoss()


class Again(Recorder):
    """Records nothing: runs it once more each time."""

    def record(
        self, run: Callable[[], list[Tensor]], device: torch.device
    ) -> tuple[list[Tensor], Callable[[], None]]:
        results = [result.clone() for result in run()]

        def replay() -> None:
            for result, value in zip(results, run(), strict=True):
                result.copy_(value)

        return results, replay


class Fails(Recorder):
    """Cannot."""

    def record(
        self, run: Callable[[], list[Tensor]], device: torch.device
    ) -> tuple[list[Tensor], Callable[[], None]]:
        run()
        raise RuntimeError("operation not permitted when stream is capturing\nand more")


@pytest.fixture(autouse=True)
def recording(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The CPU has a recorder too; and all have the same bits each time."""
    real = compiled.recorders
    monkeypatch.setattr(compiled, "recorders", lambda: real() | {"cpu": Again()})
    torch.manual_seed(0)
    with reproducible():
        yield


def pair(
    evaluator: Evaluator, case: Case, quantities: list[str], seed: int, **options: int
) -> tuple[Evaluation, Evaluation]:
    """What the evaluator and an eager pass compute of a batch, from the same random numbers."""
    torch.manual_seed(seed)
    own = evaluator(case.inputs, case.targets, quantities, seed=seed, **options)
    torch.manual_seed(seed)
    given = case.model, case.loss, case.inputs, case.targets, quantities
    return own, evaluate(*given, seed=seed, **options)


def on(device: str, case: Case) -> Case:
    model, loss = case.model.to(device), case.loss.to(device)
    return Case(model, case.inputs.to(device), case.targets.to(device), loss, case.samples)


def on_devices(names: Iterable[str]) -> list[object]:
    """Arguments of a test: each name on a GPU, some on a CPU."""
    there = [pytest.param(name, "cuda", marks=on_gpu) for name in sorted(names)]
    return [*((name, "cpu") for name in sorted(HERE & set(names))), *there]


@pytest.mark.parametrize(("name", "device"), on_devices(QUICK))
def test_it_has_the_bits_of_the_eager_pass(name: str, device: str) -> None:
    case, other = on(device, make(name)), on(device, make(name, 1))
    evaluator = Evaluator(case.model, case.loss, eager_calls=1)
    for number in range(6):
        x, y = ((case, other)[number % 2].inputs, (case, other)[number % 2].targets)
        for p in case.model.parameters():
            p.data = p.data * 1.01  # as a server binds another version
        batch = Case(case.model, x, y, case.loss, case.samples)
        assert same_bits(*pair(evaluator, batch, ["grad", "diag_ggn_mc"], number))
    if (name, device) == ("recurrent", "cuda"):  # cuDNN's nets lay their weights side by side
        assert "UntypedStorage" in evaluator.refusals()[0]
    else:
        assert evaluator.captured() == 1, (evaluator.refusals(), evaluator.obstacles())


@pytest.mark.parametrize(("quantity", "device"), on_devices(QUANTITIES))
def test_every_quantity_has_the_bits_of_the_eager_pass(quantity: str, device: str) -> None:
    case = on(device, make("mlp"))
    evaluator = Evaluator(case.model, case.loss, eager_calls=1)
    for seed in range(4):
        own, wanted = pair(evaluator, case, [quantity], seed, mc_samples=2)
        if all(isinstance(leaf, Tensor) for leaf in leaves(wanted)):
            assert same_bits(own, wanted)
    assert evaluator.compiled() == (quantity not in EAGER), evaluator.refusals()
    if quantity == "ekfac":
        assert "linalg_eigh" in evaluator.obstacles()[0] and not evaluator.captured()
    else:
        assert evaluator.captured() == evaluator.compiled(), evaluator.obstacles()


@pytest.mark.parametrize("device", DEVICES)
def test_random_layers_and_buffers_go_on_as_they_would(device: str) -> None:
    def network() -> nn.Module:
        return nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Dropout(), nn.Linear(6, 3))

    model, other = network().to(device), network().to(device)
    other.load_state_dict(model.state_dict())
    evaluator = Evaluator(model, LOSS, eager_calls=1)
    for seed in range(12):
        samples = (8, 5)[seed % 2]  # their graphs share where the buffers lie
        x, y = torch.randn(samples, 4).to(device), torch.randint(3, (samples,)).to(device)
        torch.manual_seed(seed)
        own, after = evaluator(x, y, ["grad"], seed=seed), torch.rand(1, device=device)
        torch.manual_seed(seed)
        assert same_bits(own, evaluate(other, LOSS, x, y, ["grad"], seed=seed))
        assert torch.equal(after, torch.rand(1, device=device))
        assert all(map(torch.equal, model.buffers(), other.buffers()))
        for buffer in model.buffers():
            buffer.data = buffer.clone()  # as a server binds another version
    assert evaluator.captured() == 2, (evaluator.refusals(), evaluator.obstacles())


@pytest.mark.parametrize("device", DEVICES)
def test_results_are_nobodys_to_write_over(device: str) -> None:
    model = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3)).to(device)
    evaluator = Evaluator(model, LOSS, eager_calls=1)
    kept, copies = [], []
    for samples in (8, 5) * 6:
        x = torch.randn(samples, 4, device=device)
        y = torch.randint(3, (samples,), device=device)
        kept.append(evaluator(x, y, ["grad", "diag_ggn_mc"], seed=0))
        copies.append([leaf.clone() for leaf in leaves(kept[-1])])
    assert evaluator.captured() == 2
    for found, copy in zip(kept, copies, strict=True):
        assert all(map(torch.equal, leaves(found), copy))


@pytest.mark.parametrize("device", DEVICES)
def test_what_is_not_finite_is_said_as_it_would_be(device: str) -> None:
    model = nn.Linear(4, 3).to(device)
    for seed in (0, None):
        evaluator = Evaluator(model, LOSS, eager_calls=1)
        for _ in range(4):
            x, y = torch.randn(8, 4).to(device), torch.randint(3, (8,)).to(device)
            evaluator(x, y, ["diag_ggn_mc"], seed=seed)
        with pytest.raises(NonFiniteError, match="NaN or infinity"):
            evaluator(x * torch.inf, y, ["diag_ggn_mc"], seed=seed)
        if device == "cuda" and seed is None:
            assert "give a seed" in evaluator.refusals()[0]
        else:
            assert evaluator.compiled() == 1
        assert torch.isfinite(evaluator(x, y, ["diag_ggn_mc"], seed=seed).loss)


class Does(nn.Module):
    """Something of the test's own behind a layer."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.layer, self.function = nn.Linear(4, 3), function
        self.register_buffer("scale", torch.ones(()))

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self.layer(x))


def fake(function: Callable[..., list[Tensor]]) -> tuple[GraphModule, Tensor]:
    """A program for a GPU that nobody has, and what it takes."""
    with FakeTensorMode(allow_non_fake_inputs=True):
        x = torch.empty(8, 4, device="cuda")
        return shortened(written_down(function, x)), x


ONE = torch.ones(())


@pytest.mark.parametrize(
    ("function", "told"),
    [
        (lambda x: [x * 2 + ONE], ""),
        (lambda x: [x + torch.ones(()) * 3], ""),
        (lambda x: [x.t().contiguous().view(4, 8).clone(), x + torch.rand_like(x)], ""),
        (lambda x: [x + torch.randn(4).to(x.device)], "aten.randn.default computes on cpu"),
        (lambda x: [x + torch.arange(4.0).to(x.device)], "copies to cuda:0 in the middle"),
        (lambda x: [x * x.sum().cpu()], "aten._to_copy.default computes on cpu"),
        (lambda x: [x.cpu()], "aten._to_copy.default computes on cpu"),
    ],
)
def test_what_stands_against_a_graph_is_told(
    function: Callable[..., list[Tensor]], told: str
) -> None:
    program, x = fake(function)
    reason = obstacle(program, nn.Linear(4, 3), [x])
    assert told in reason and bool(told) == bool(reason)


def test_a_tensor_of_the_model_elsewhere_stands_against_a_graph() -> None:
    model = Does(lambda x: x)
    program, x = fake(lambda x: [x * model.scale])
    assert obstacle(program, model, [x]) == "a tensor of the model lies on cpu"
    other = torch.empty(8, device="meta")
    assert obstacle(program, model, [x, other]) == "the batch lies on several devices"


def test_a_program_that_cannot_be_recorded_runs_all_the_same(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(compiled, "recorders", lambda: {"cpu": Fails()})
    model = nn.Linear(4, 3)
    evaluator = Evaluator(model, LOSS, eager_calls=1)
    for seed in range(4):
        x, y = torch.randn(8, 4), torch.randint(3, (8,))
        own = evaluator(x, y, ["grad"], seed=seed)
        assert same_bits(own, evaluate(model, LOSS, x, y, ["grad"], seed=seed))
    assert (evaluator.compiled(), evaluator.captured()) == (1, 0)
    assert evaluator.obstacles() == [
        "RuntimeError: operation not permitted when stream is capturing"
    ]


@torch.library.custom_op("curvserve_tests::waited_for", mutates_args=())
def waited_for(x: Tensor) -> Tensor:
    """Doubles, and looks at the result on the way, though nobody tells."""
    doubled = x * 2
    doubled.sum().item()
    return doubled


@waited_for.register_fake
def _(x: Tensor) -> Tensor:
    return torch.empty_like(x)


torch.library.register_autograd("curvserve_tests::waited_for", lambda ctx, s: s * 2)


@on_gpu
def test_a_recording_that_fails_leaves_torch_as_it_was() -> None:
    model, sound = Does(waited_for).cuda(), nn.Sequential(nn.Linear(4, 3), nn.Dropout()).cuda()
    evaluator, free = (Evaluator(m, LOSS, eager_calls=1) for m in (model, sound))
    for seed in range(5):
        x, y = torch.randn(8, 4).cuda(), torch.randint(3, (8,)).cuda()
        assert same_bits(*pair(evaluator, Case(model, x, y, LOSS, 8), ["grad"], seed))
        assert same_bits(*pair(free, Case(sound, x, y, LOSS, 8), ["grad"], seed))
    assert (evaluator.compiled(), evaluator.captured()) == (1, 0)
    assert "captur" in evaluator.obstacles()[0]
    assert free.captured() == 1
    torch.cuda.empty_cache()
    held = torch.cuda.memory_reserved()
    junk = torch.empty(64 << 20, device="cuda")
    del junk
    torch.cuda.empty_cache()
    assert torch.cuda.memory_reserved() <= held


@on_gpu
def test_what_has_other_bits_each_time_is_told_how_it_has_the_same() -> None:
    model = Does(lambda x: x + torch.rand((), device="cuda")).cuda()
    torch.set_deterministic_debug_mode("default")
    evaluator = Evaluator(model, LOSS, eager_calls=1)
    for seed in range(3):
        if seed == 2:  # as an operation that adds up in any order would
            model.function = lambda x: x + 1.0
        evaluator(torch.randn(8, 4).cuda(), torch.randint(3, (8,)).cuda(), ["grad"], seed=seed)
    assert evaluator.refusals()[0].endswith("see curvserve.engine.reproducible")


@on_gpu
@pytest.mark.parametrize("name", ["mnist_cnn", "mlp", "cifar_3c3d", "byte_transformer"])
def test_models_of_the_server_are_graphs(name: str) -> None:
    recipe = resolve(name)
    model, loss = recipe.build().cuda(), recipe.loss().cuda()
    evaluator = Evaluator(model, loss, eager_calls=1)
    for seed in range(5):
        x, y = batch_of(recipe, seed)
        case = on("cuda", Case(model, x, y, loss, len(x)))
        assert same_bits(*pair(evaluator, case, ["grad", "diag_ggn_mc"], seed))
    assert evaluator.captured() == 1, (evaluator.refusals(), evaluator.obstacles())


def batch_of(recipe: Model, seed: int) -> tuple[Tensor, Tensor]:
    x, y = draw(recipe.inputs, 32, seed), draw(recipe.targets, 32, seed + 1)
    return recipe.inputs.convert(x), recipe.targets.convert(y)


@on_gpu
def test_shapes_share_their_memory() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(1024, 4096), nn.ReLU(), nn.Linear(4096, 10))
    evaluator = Evaluator(model.cuda(), LOSS, eager_calls=1)
    held = []
    for samples in range(2040, 2048):
        for seed in range(3):
            x = torch.randn(samples, 1024, device="cuda")
            y = torch.randint(10, (samples,), device="cuda")
            evaluator(x, y, ["grad"], seed=seed)
        torch.cuda.empty_cache()
        held.append(torch.cuda.memory_reserved())
    assert evaluator.captured() == 8
    # gradients (34 MB), parameters and batches are each one's own; intermediates (100 MB) are not
    assert held[-1] - held[0] < 7 * 100e6


def test_a_program_is_held_by_its_recording_alone() -> None:
    x = torch.randn(8, 4)
    program = shortened(written_down(lambda x: [x * 2, x.sum()], x))
    captured = Captured(program, [x], Again())
    for _ in range(3):
        x = torch.randn(8, 4)
        _, rest = captured.begin(x)
        doubled, total = rest() or []
        assert torch.equal(doubled, x * 2) and torch.equal(total, x.sum())


def test_parameters_lie_in_one_place_for_all_shapes() -> None:
    recorder, weight = Again(), nn.Parameter(torch.randn(3, 4))
    place = recorder.place(weight)
    weight.data = torch.randn(3, 4)
    assert recorder.place(weight) is place and not place.requires_grad
    weight.data = torch.randn(4, 3).T  # as a session may have it that lays it otherwise
    other = recorder.place(weight)
    assert other is not place and other.stride() == weight.stride()
    assert torch.equal(other, weight)
