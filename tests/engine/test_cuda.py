"""On a GPU the numbers are those of the CPU; and what is different there: kernels and threads.

Each expectation is computed on the CPU in float64. Torch's defaults are left as they are: products
of float32 matrices keep all bits (`torch.backends.cuda.matmul.allow_tf32` is False), cuDNN's
convolutions and recurrent nets round what they multiply to the ten bits of TF32
(`torch.backends.cudnn.allow_tf32` is True).
"""

import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.checkpoint import checkpoint

from curvserve.engine import backpack, evaluate, extend
from curvserve.engine.errors import EngineError
from curvserve.engine.extensions import (
    HMP,
    KFAC,
    BatchDiagGGNExact,
    BatchGrad,
    BatchL2Grad,
    DiagGGNExact,
    DiagGGNMC,
    DiagHessian,
    SqrtGGNExact,
    SumGradSquared,
    Variance,
)
from curvserve.engine.graph import nodes
from curvserve.engine.quantities import EXTENSIONS, QUANTITIES, Quantity
from tests.engine import reference
from tests.engine.kinds import KINDS, build
from tests.engine.live import counting_tensors
from tests.engine.test_against_backpack import EXTENSIONS as OF_THE_PEER
from tests.engine.test_against_backpack import check_equal, cross_entropy, mlp, squared_error
from tests.engine.test_against_backpack import seed_cnn as peers_cnn
from tests.engine.test_conduct import instance
from tests.engine.test_quantities import collected, largest_error, run
from tests.engine.zoo import ZOO, Case, Wrapped, classes, make
from tests.gpu import on_gpu

pytestmark = [
    on_gpu,
    # torch says so where a product of matrices is the first that a thread asks of the GPU
    pytest.mark.filterwarnings("ignore:Attempting to run cuBLAS, but there was no current CUDA"),
]

CUDA = "cuda"
PATIENCE = 60.0  # seconds; what takes so long waits for ever
LOOKS = 20

ROUNDS_TO_TF32 = (nn.modules.conv._ConvNd, nn.RNNBase)
SINGLE, TF32 = 1e-4, 1e-2
"""How far float32 may be from float64, in norm over all parameters."""

EXACT = 1e-10
ROUNDER = {
    # torch's fused weight norm is off by 3e-8 in float64, the forward pass included
    "weight_norm": 1e-6,
    "weight norm": 1e-6,
    "generic_layers": 1e-8,  # a bias before a norm, whose gradient is zero but for rounding
}
"""How far float64 may be from the same on the CPU, and where further."""


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


def there(case: Case, dtype: torch.dtype = torch.float64) -> Case:
    """The same case on the GPU; the case itself is moved."""
    x, y = case.inputs.to(CUDA), case.targets.to(CUDA)
    x = x.to(dtype) if x.is_floating_point() else x
    y = y.to(dtype) if y.is_floating_point() else y
    model, loss = case.model.to(CUDA, dtype), case.loss.to(CUDA, dtype)
    return Case(model, x, y, loss, case.samples)


def of_kind(kind: str) -> Case:
    model, inputs = build(kind)
    lines = len(reference.outputs_of(model, inputs))
    return Case(model, inputs, classes(lines), nn.CrossEntropyLoss())


def here(value: Any) -> Any:
    """Results in float64 on the CPU."""
    if isinstance(value, dict):
        return {name: here(v) for name, v in value.items()}
    return value.detach().to("cpu", torch.float64)


def distance(found: dict[str, Tensor], expected: dict[str, Tensor]) -> float:
    """The norm of the difference over that of what is expected, over all parameters."""
    assert found.keys() == expected.keys()
    flat = [
        torch.cat([value.flatten() for value in tensors.values()])
        for tensors in ({n: here(found[n]) for n in expected}, here(expected))
    ]
    return float((flat[0] - flat[1]).norm() / flat[1].norm())


def kernels(outputs: Tensor) -> str:
    assert outputs.grad_fn is not None
    return " ".join(node.name() for node in nodes(outputs.grad_fn))


@pytest.mark.parametrize("name", ZOO)
def test_every_structure_in_float64(name: str) -> None:
    case = there(make(name))
    run(case, BatchGrad(), DiagGGNExact())
    plain = make(name)
    limit = ROUNDER.get(name, EXACT)
    arguments = plain.model, plain.loss, plain.inputs, plain.targets
    rows, diagonal = reference.batch_grad(*arguments, plain.samples), reference.diag_ggn(*arguments)
    assert all(p.grad_batch.is_cuda and p.diag_ggn_exact.is_cuda for p in case.model.parameters()
               if p.requires_grad)  # fmt: skip
    assert largest_error(here(collected(case, "grad_batch")), rows) < limit
    assert largest_error(here(collected(case, "diag_ggn_exact")), diagonal) < limit


def numbers(name: str, values: dict[str, Any], model: nn.Module) -> dict[str, Tensor]:
    """Results as tensors that do not depend on a choice: of eigenvectors, of a vector."""
    found: dict[str, Tensor] = {}
    for key, value in values.items():
        if name == "ekfac":  # where eigenvalues are equal, any basis will do
            found[key] = value[-1].sum()
        elif isinstance(value, list):
            found |= {f"{key} {i}": factor for i, factor in enumerate(value)}
        elif callable(value):
            p = model.get_parameter(key)
            generator = torch.Generator().manual_seed(0)
            found[key] = value(torch.randn(p.shape, generator=generator, dtype=torch.float64).to(p))
        else:
            found[key] = value
    return found


def computed(case: Case, name: str) -> dict[str, Tensor] | type[EngineError]:
    """A quantity with draws from a seed, or how it is refused."""
    torch.manual_seed(0)  # random signs come from torch's generator on the CPU
    arguments = case.model, case.loss, case.inputs, case.targets
    try:
        found = evaluate(*arguments, [name], seed=1, mc_samples=2).quantities[name]
    except EngineError as error:
        return type(error)
    return numbers(name, found, case.model)


@pytest.mark.parametrize("kind", KINDS)
def test_every_quantity_on_every_kind_of_layer_in_float64(kind: str) -> None:
    on_cpu, on_gpu = of_kind(kind), there(of_kind(kind))
    on_gpu.targets = on_cpu.targets.to(CUDA)
    for name in QUANTITIES:
        expected, found = computed(on_cpu, name), computed(on_gpu, name)
        if isinstance(expected, type):
            assert found is expected, name
        else:
            assert not isinstance(found, type), (name, found)
            assert all(value.is_cuda for value in found.values()), name
            assert largest_error(here(found), here(expected)) < ROUNDER.get(kind, EXACT), name


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_layer_in_float32(kind: str) -> None:
    on_cpu, on_gpu = of_kind(kind), there(of_kind(kind), torch.float32)
    on_gpu.targets = on_cpu.targets.to(CUDA)
    rough = any(isinstance(module, ROUNDS_TO_TF32) for module in on_gpu.model.modules())
    for name in ("grad_batch", "diag_ggn_exact", "diag_ggn_mc", "diag_h", "hmp"):
        expected, found = computed(on_cpu, name), computed(on_gpu, name)
        assert not isinstance(expected, type) and not isinstance(found, type), (name, found)
        assert {value.dtype for value in found.values()} == {torch.float32}
        assert distance(found, expected) < (TF32 if rough else SINGLE), name


def test_float32_differs_from_float64_by_tf32_alone() -> None:
    """The network that is served, at a batch as it is trained with."""
    assert not torch.backends.cuda.matmul.allow_tf32 and torch.backends.cudnn.allow_tf32
    model, _ = peers_cnn()
    case = Case(model.double(), torch.randn(64, 1, 28, 28).double(), classes(64, 10),
                nn.CrossEntropyLoss())  # fmt: skip
    fields = ("grad", "grad_batch", "diag_ggn_exact", "diag_ggn_mc")

    def quantities(case: Case) -> dict[str, dict[str, Tensor]]:
        arguments = case.model, case.loss, case.inputs, case.targets
        return evaluate(*arguments, fields, seed=0).quantities

    expected = quantities(case)
    case = there(case, torch.float32)
    rounded = quantities(case)
    torch.backends.cudnn.allow_tf32 = False
    try:
        exact = quantities(case)
    finally:
        torch.backends.cudnn.allow_tf32 = True
    for field in fields:
        assert distance(exact[field], expected[field]) < SINGLE
        assert distance(exact[field], expected[field]) < distance(rounded[field], expected[field])
        assert distance(rounded[field], expected[field]) < TF32


@pytest.mark.parametrize("make_loss", [cross_entropy, squared_error])
@pytest.mark.parametrize("make_model", [peers_cnn, mlp])
@pytest.mark.parametrize("extension", OF_THE_PEER)
def test_equal_to_backpack_with_equal_draws(
    extension: str,
    make_model: Callable[[], tuple[nn.Module, Tensor]],
    make_loss: Callable[[str], tuple[nn.Module, Tensor]],
) -> None:
    check_equal(extension, make_model, make_loss, "mean", CUDA, 1e-10)


@pytest.mark.parametrize("name", ["language_model", "recurrent_time_first_with_state"])
def test_the_mean_of_many_draws_tends_to_the_exact_diagonal(name: str) -> None:
    """Of what the peer cannot do, with draws from the GPU's generator."""
    case = there(make(name))
    run(case, DiagGGNMC(1024), DiagGGNExact())
    assert distance(collected(case, "diag_ggn_mc"), collected(case, "diag_ggn_exact")) < 0.15


def test_a_seed_leaves_the_generators_as_they_are() -> None:
    case = there(make("seed_cnn"))
    states = torch.get_rng_state(), torch.cuda.get_rng_state()
    arguments = case.model, case.loss, case.inputs, case.targets
    evaluate(*arguments, ["diag_ggn_mc"], seed=3, chunk=2)
    assert torch.equal(torch.get_rng_state(), states[0])
    assert torch.equal(torch.cuda.get_rng_state(), states[1])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize(
    "name", ["mlp", "seed_cnn", "transformer_encoder", "same_linear_twice", "recurrent"]
)
def test_autocast(name: str, dtype: torch.dtype) -> None:
    case, plain = there(make(name), torch.float32), make(name)
    extend(case.model), extend(case.loss)
    extensions = [BatchGrad(), BatchL2Grad(), SumGradSquared(), DiagGGNExact(), SqrtGGNExact()]
    with backpack(*extensions):
        with torch.autocast(CUDA, dtype):
            outputs = case.model(case.inputs)
            value = case.loss(outputs, case.targets)
        assert outputs.dtype == dtype
        value.backward()
    run(plain, *extensions)
    for field in (extension.savefield for extension in extensions):
        found = collected(case, field)
        # squares are summed in the parameters' type, not in that of the cotangents
        assert {v.dtype for v in found.values()} == {torch.float32}
        expected = collected(plain, field)
        assert distance(found, expected) < (0.02 if dtype == torch.float16 else 0.15), field


def test_activation_checkpointing_draws_the_same_mask_again() -> None:
    """The rows are those of the mask that the gradient has."""
    body = nn.Sequential(nn.Linear(6, 64), nn.Dropout(0.5), nn.Tanh())
    model = extend(
        Wrapped(
            lambda m, x: m.head(checkpoint(m.body, x, use_reentrant=False)),
            body=body, head=nn.Linear(64, 4),
        ).double().to(CUDA)
    )  # fmt: skip
    x, y = torch.randn(5, 6).double().to(CUDA), classes(5).to(CUDA)
    with backpack(BatchGrad(), DiagGGNExact()):
        extend(nn.CrossEntropyLoss())(model(x), y).backward()
    for p in model.parameters():
        torch.testing.assert_close(p.grad_batch.sum(0), p.grad, rtol=1e-12, atol=1e-14)
        assert bool((p.diag_ggn_exact > 0).any())


def test_what_a_hook_raises_in_autograds_thread_arrives() -> None:
    model = extend(
        Wrapped(
            lambda m, x: m.head(checkpoint(m.body, x, use_reentrant=True)),
            body=nn.Linear(6, 6), head=nn.Linear(6, 4),
        ).to(CUDA)
    )  # fmt: skip
    x, y = torch.randn(5, 6, device=CUDA, requires_grad=True), classes(5).to(CUDA)
    with pytest.raises(EngineError, match="use_reentrant=False"), backpack(BatchGrad()):
        extend(nn.CrossEntropyLoss())(model(x), y).backward()
    assert not any(hasattr(p, "grad_batch") for p in model.parameters())


FUSED = {
    SDPBackend.FLASH_ATTENTION: "FlashAttention",
    SDPBackend.EFFICIENT_ATTENTION: "EfficientAttention",
    SDPBackend.CUDNN_ATTENTION: "CudnnAttention",
}


def attending(m: nn.Module, x: Tensor) -> Tensor:
    """Attention in bfloat16 on the GPU, in which all fused kernels compute, else as it comes."""
    q, k, v = m.into(x).unflatten(-1, (2, -1)).transpose(1, 2).chunk(3, -1)
    if x.is_cuda:
        q, k, v = (t.bfloat16().contiguous() for t in (q, k, v))
    mixed = F.scaled_dot_product_attention(q, k, v).to(x.dtype)
    return m.head(mixed.transpose(1, 2).flatten(2).mean(1))


@pytest.mark.parametrize("backend", FUSED, ids=FUSED.values())
def test_fused_attention_is_replaced_where_it_cannot_be_differentiated(backend: SDPBackend) -> None:
    model = Wrapped(attending, into=nn.Linear(16, 48), head=nn.Linear(16, 4)).double()
    x, y, loss = torch.randn(5, 8, 16).double(), classes(5), nn.CrossEntropyLoss()
    names = ("grad_batch", "diag_ggn_exact", "diag_h")
    expected = evaluate(model, loss, x, y, names).quantities
    blocks = reference.hessian_blocks(model, loss, x, y)
    case = there(Case(model, x, y, loss), torch.float32)
    extend(case.model), extend(case.loss)
    with sdpa_kernel(backend), backpack(BatchGrad(), DiagGGNExact(), DiagHessian(), HMP()):
        outputs = case.model(case.inputs)
        assert FUSED[backend] in kernels(outputs)
        case.loss(outputs, case.targets).backward()
    for name in names:
        assert distance(collected(case, name), expected[name]) < 0.05, name
    products = {n: p.hmp(torch.ones_like(p)) for n, p in case.model.named_parameters()}
    sums = {n: blocks[n].sum(1).view_as(p) for n, p in case.model.named_parameters()}
    assert distance(products, sums) < 0.05


@pytest.mark.parametrize("backend", FUSED, ids=FUSED.values())
def test_modules_with_fused_attention_are_replayed(backend: SDPBackend) -> None:
    attend, head = nn.MultiheadAttention(16, 2, batch_first=True), nn.Linear(16, 4)
    model = Wrapped(
        lambda m, x: m.head(m.attend(x, x, x, need_weights=False)[0].mean(1)),
        attend=attend, head=head,
    ).double()  # fmt: skip
    x, y, loss = torch.randn(5, 8, 16).double(), classes(5), nn.CrossEntropyLoss()
    names = ("grad_batch", "diag_ggn_exact")
    expected = evaluate(model, loss, x, y, names).quantities
    case = there(Case(model, x, y, loss), torch.float32)
    extend(case.model), extend(case.loss)
    with backpack(BatchGrad(), DiagGGNExact()):
        with sdpa_kernel(backend), torch.autocast(CUDA, torch.bfloat16):
            outputs = case.model(case.inputs)
            assert FUSED[backend] in kernels(outputs)
            value = case.loss(outputs, case.targets)
        value.backward()
    for name in names:
        assert distance(collected(case, name), expected[name]) < 0.05, name


RECURRENT = {
    "lstm": lambda: nn.LSTM(32, 64, 2, batch_first=True),
    "lstm, both ways, projected": lambda: nn.LSTM(32, 64, bidirectional=True, proj_size=16),
    "gru, both ways": lambda: nn.GRU(32, 64, 2, bidirectional=True, batch_first=True),
    "rnn": lambda: nn.RNN(32, 64),
}


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("kind", RECURRENT)
def test_recurrent_nets_by_cudnn(kind: str, dtype: torch.dtype) -> None:
    body = RECURRENT[kind]()

    def forward(m: nn.Module, x: Tensor) -> Tensor:
        x = x if m.body.batch_first else x.transpose(0, 1)
        y = m.body(x)[0]
        return m.head(y[:, -1] if m.body.batch_first else y[-1])

    width = (body.proj_size or body.hidden_size) * (2 if body.bidirectional else 1)
    model = Wrapped(forward, body=body, head=nn.Linear(width, 4)).double()
    case = Case(model, torch.randn(7, 12, 32).double(), classes(7), nn.CrossEntropyLoss())
    names = ("grad_batch", "diag_ggn_mc", "hmp")
    expected = {name: computed(case, name) for name in names}
    case = there(case, dtype)
    assert "Cudnn" in kernels(case.model(case.inputs))
    for name in names:
        found = computed(case, name)
        assert not isinstance(found, type), (name, found)
        wanted = expected[name]
        assert not isinstance(wanted, type)
        assert distance(found, wanted) < (1e-10 if dtype == torch.float64 else TF32), name


class Halves(nn.Module):
    """Two halves, each on a device of its own, and one path that leaves the second out."""

    def __init__(self, first: str, second: str, *, around: bool = False) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.Conv2d(1, 3, 3), nn.Tanh(), nn.Flatten()).to(first)
        self.second = nn.Sequential(nn.Linear(48, 8), nn.ReLU(), nn.Linear(8, 4)).to(second)
        self.short = nn.Linear(48, 4).to(first) if around else None
        self.double()

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.first(x)
        result = self.second(hidden.to(self.second[0].weight.device))
        return result if self.short is None else result.to(x.device) + self.short(hidden)


@pytest.mark.parametrize("around", [False, True], ids=["chain", "two paths"])
@pytest.mark.parametrize("devices", [("cpu", CUDA), (CUDA, "cpu")], ids="-".join)
def test_a_model_on_several_devices(devices: tuple[str, str], around: bool) -> None:
    whole, split = Halves("cpu", "cpu", around=around), Halves(*devices, around=around)
    split.load_state_dict(whole.state_dict())
    x, y = torch.randn(5, 1, 6, 6).double(), classes(5)
    loss, extensions = nn.CrossEntropyLoss(), [BatchGrad(), DiagGGNExact(), DiagGGNMC(), KFAC(2)]
    names = [q.savefield for q in extensions]

    def quantities(model: nn.Module, end: str) -> dict[str, dict[str, Any]]:
        arguments = x.to(model.first[0].weight.device), y.to(end), names
        found = evaluate(model, loss, *arguments, seed=4, mc_samples=2).quantities
        return {name: numbers(name, values, model) for name, values in found.items()}

    end = devices[0] if around else devices[1]
    expected, found = quantities(whole, "cpu"), quantities(split, end)
    for name in names:
        assert largest_error(here(found[name]), here(expected[name])) < 1e-10, name
    extend(split), extend(loss)
    for _ in range(10):  # hooks run in two threads
        with backpack(*extensions):
            loss(split(x.to(devices[0])), y.to(end)).backward()
        for name in ("grad_batch", "diag_ggn_exact"):
            at_hand = {n: getattr(p, name) for n, p in split.named_parameters()}
            assert all(v.device == p.device for v, p in
                       zip(at_hand.values(), split.parameters(), strict=True))  # fmt: skip
            assert largest_error(here(at_hand), here(expected[name])) < 1e-10, name


def in_threads(*work: Callable[[], object]) -> None:
    """Run all at once; fail where one fails or does not end."""
    start, failed = threading.Barrier(len(work)), []

    def go(own: Callable[[], object]) -> None:
        start.wait()
        try:
            own()
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=go, args=(own,), daemon=True) for own in work]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE)
    assert not any(thread.is_alive() for thread in threads), "they wait for each other"
    if failed:
        raise failed[0]


def test_threads_have_the_numbers_of_each_alone() -> None:
    work: dict[str, Quantity] = {
        "mlp": DiagHessian(),
        "seed_cnn": DiagGGNExact(),
        "transformer_encoder": BatchDiagGGNExact(),
        "language_model": BatchGrad(),
        "recurrent": Variance(),
        "weight_norm": BatchL2Grad(),
    }
    cases = {name: there(make(name)) for name in work}
    alone = {}
    for name, extension in work.items():
        run(cases[name], extension)
        alone[name] = here(collected(cases[name], extension.savefield))

    def repeat(name: str, extension: Quantity) -> None:
        for _ in range(5):
            run(cases[name], extension)
            found = here(collected(cases[name], extension.savefield))
            assert largest_error(found, alone[name]) < 1e-11

    in_threads(*(lambda n=name, e=extension: repeat(n, e) for name, extension in work.items()))


def test_threads_that_replay_attention_do_not_wait_for_each_other() -> None:
    """One in its own thread, one in the hooks, which all run in one thread of autograd's."""
    first, second = there(make("transformer_encoder")), there(make("transformer_encoder"))

    def called() -> None:
        for _ in range(10):
            arguments = first.model, first.loss, first.inputs, first.targets
            evaluate(*arguments, ["diag_ggn_exact"])

    def hooked() -> None:
        for _ in range(10):
            run(second, BatchGrad(), DiagGGNExact())

    in_threads(called, hooked)


@pytest.mark.parametrize("kind", EXTENSIONS, ids=lambda kind: kind.__name__)
def test_50_passes_leave_no_tensor_and_no_memory_more(kind: type[Quantity]) -> None:
    extension, probe = instance(kind), torch.ones((), device=CUDA, requires_grad=True)
    with counting_tensors() as live:
        model = extend(nn.Sequential(nn.Linear(2, 2), nn.Tanh(), nn.Linear(2, 2)).double().to(CUDA))
        loss = extend(nn.CrossEntropyLoss())
        x, y = torch.randn(2, 2).double().to(CUDA), classes(2, 2).to(CUDA)

        def step() -> None:
            with backpack(extension):
                loss(model(x), y).backward()
            for p in model.parameters():
                if callable(found := getattr(p, extension.savefield)):
                    found(p)  # a product runs the model again

        def looked() -> tuple[int, int]:
            # autograd's thread lets go of a pass after backward has returned: before the next
            torch.autograd.grad(probe * 1, probe)
            return live(), torch.cuda.memory_allocated()

        def held() -> tuple[int, int]:
            return min(looked() for _ in range(LOOKS))

        step()
        once = held()
        for _ in range(49):
            step()
        assert held() == once


class Greedy(nn.Module):
    """Wants more memory than there is at its second call, which is a replay."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(6, 6))
        self.calls = 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        if self.calls % 2 == 0:
            x.new_empty(2**46)
        return x @ self.weight


def test_out_of_memory_in_a_replay_is_told_as_such() -> None:
    model = extend(nn.Sequential(Greedy(), nn.Tanh(), nn.Linear(6, 4)).to(CUDA))
    loss, x, y = extend(nn.CrossEntropyLoss()), torch.randn(5, 6, device=CUDA), classes(5).to(CUDA)
    with pytest.raises(torch.OutOfMemoryError), backpack(BatchGrad()):
        loss(model(x), y).backward()
    assert not any(hasattr(p, "grad_batch") for p in model.parameters())
    case = there(make("mlp"))
    run(case, BatchGrad())
    assert case.model[0].weight.grad_batch.shape == (5, 8, 6)
