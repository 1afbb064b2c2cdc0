"""What holds for any network, batch and loss: drawn at random, held against brute force."""

from collections.abc import Callable

import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.distributions import Categorical

from curvserve.engine import backpack, evaluate, extend
from curvserve.engine.extensions import (
    GGNMP,
    HMP,
    BatchGrad,
    BatchL2Grad,
    DiagGGNExact,
    DiagGGNMC,
    DiagHessian,
    SqrtGGNExact,
    SumGradSquared,
)
from tests.engine import reference
from tests.engine.test_quantities import collected, largest_error, run
from tests.engine.zoo import Case

some = settings(
    max_examples=40,
    deadline=None,
    derandomize=True,  # the same cases in every run of the suite
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)

TOLERANCE = 1e-9  # of the largest entry; a bias that a norm removes has only rounding

VECTOR_KINDS = ["linear", "activation", "norm", "residual", "twice", "tied", "inplace"]
Draw = Callable[[st.SearchStrategy], object]


class Residual(nn.Module):
    """x + f(x)."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        return x + self.inner(x)


class ClassesSecond(nn.Module):
    """Moves the last axis to where cross entropy wants the classes."""

    def forward(self, x: Tensor) -> Tensor:
        return x.movedim(-1, 1)


def activation(draw: Draw) -> nn.Module:
    kinds = [nn.ReLU, nn.Tanh, nn.GELU, nn.PReLU, nn.SiLU]
    return draw(st.sampled_from(kinds))()


def convolution(draw: Draw, channels: int, size: int) -> nn.Conv2d:
    groups = draw(st.sampled_from([g for g in (1, 2, 3) if channels % g == 0]))
    kernel, dilation = draw(st.integers(1, min(3, size))), draw(st.integers(1, 2))
    if dilation * (kernel - 1) >= size:
        dilation = 1
    return nn.Conv2d(
        channels,
        groups * draw(st.integers(1, 2)),
        kernel,
        stride=draw(st.integers(1, 2)),
        padding=draw(st.integers(0, min(2, size - 1))),
        dilation=dilation,
        groups=groups,
        bias=draw(st.booleans()),
        padding_mode=draw(st.sampled_from(["zeros", "circular", "reflect", "replicate"])),
    )


def image_layer(draw: Draw, shape: tuple[int, ...]) -> nn.Module:
    channels, size = shape[0], min(shape[1:])
    kind = draw(st.sampled_from(["conv", "activation", "pool", "norm", "residual", "inplace"]))
    if kind == "conv":
        return convolution(draw, channels, size)
    if kind == "pool" and size >= 2:
        return draw(st.sampled_from([nn.MaxPool2d, nn.AvgPool2d]))(2)
    if kind == "norm" and torch.Size(shape).numel() > 1:
        return draw(st.sampled_from([nn.LayerNorm(shape), nn.GroupNorm(1, channels)]))
    if kind == "residual":
        return Residual(nn.Conv2d(channels, channels, 3, padding="same"))
    if kind == "inplace":
        return nn.Sequential(nn.Conv2d(channels, 2, 1), nn.ReLU(inplace=True))
    return activation(draw)


def vector_layer(draw: Draw, shape: tuple[int, ...]) -> nn.Module:
    width = shape[-1]
    kind = draw(st.sampled_from(VECTOR_KINDS))
    if kind == "linear":
        return nn.Linear(width, draw(st.integers(1, 4)), bias=draw(st.booleans()))
    if kind == "norm" and width > 1:
        return nn.LayerNorm(width)
    if kind == "residual":
        return Residual(nn.Sequential(nn.Linear(width, width), activation(draw)))
    if kind == "inplace":
        return nn.Sequential(nn.Linear(width, width), nn.ReLU(inplace=True))
    if kind == "twice":
        layer = nn.Linear(width, width)
        return nn.Sequential(layer, activation(draw), layer)
    if kind == "tied":
        first, second = nn.Linear(width, width), nn.Linear(width, width)
        second.weight = first.weight
        return nn.Sequential(first, second)
    return activation(draw)


def stack(
    draw: Draw,
    layer: Callable[[Draw, tuple[int, ...]], nn.Module],
    shape: tuple[int, ...],
    first: list[nn.Module],
) -> tuple[list[nn.Module], tuple[int, ...]]:
    layers = list(first)
    for _ in range(draw(st.integers(0, 4))):
        layers.append(layer(draw, shape))
        with torch.no_grad():
            shape = tuple(layers[-1](torch.zeros(1, *shape)).shape[1:])
    return layers, shape


def network(draw: Draw, samples: int) -> tuple[list[nn.Module], Tensor, tuple[int, ...]]:
    """Return layers, a batch, and the shape of one sample after the layers."""
    kind = draw(st.sampled_from(["images", "vectors", "sequences", "tokens"]))
    if kind == "images":
        shape = (draw(st.integers(1, 4)), 5, draw(st.integers(4, 6)))
        layers, after = stack(draw, image_layer, shape, [])
        flat = torch.Size(after).numel()
        return [*layers, nn.Flatten()], torch.randn(samples, *shape), (flat,)
    if kind == "tokens":
        padding = draw(st.sampled_from([None, 0]))
        tokens = torch.randint(5, (samples, draw(st.integers(1, 3))))
        first = nn.Embedding(5, 3, padding_idx=padding)
        layers, after = stack(draw, vector_layer, (tokens.shape[1], 3), [first])
        return layers, tokens, after
    shape = (3,) if kind == "vectors" else (draw(st.integers(1, 3)), 3)
    layers, after = stack(draw, vector_layer, shape, [])
    return layers, torch.randn(samples, *shape), after


def cross_entropy(draw: Draw, shape: tuple[int, ...]) -> tuple[nn.Module, Tensor]:
    """Return the loss of outputs [N, C, ...], and targets."""
    samples, classes, *extra = shape
    options = {
        "weight": draw(st.sampled_from([None, torch.rand(classes) + 0.5])),
        "label_smoothing": draw(st.sampled_from([0.0, 0.2])),
        "reduction": draw(st.sampled_from(["mean", "sum"])),
    }
    if draw(st.booleans()):
        return nn.CrossEntropyLoss(**options), torch.randn(shape).softmax(1)
    targets = torch.randint(classes, (samples, *extra))
    if draw(st.booleans()):
        targets.view(-1)[1:][torch.rand(targets.numel() - 1) < 0.3] = -7  # one stays, at least
        options["ignore_index"] = -7
    return nn.CrossEntropyLoss(**options), targets


@st.composite
def cases(draw: Draw) -> Case:
    """A network, a batch and a loss, in float64."""
    with torch.random.fork_rng():
        torch.manual_seed(draw(st.integers(0, 2**32)))
        samples = draw(st.integers(1, 4))
        layers, inputs, after = network(draw, samples)
        layers.append(nn.Linear(after[-1], draw(st.integers(2, 4))))
        shape = (samples, *after[:-1], layers[-1].out_features)
        if draw(st.booleans()):
            loss: nn.Module = nn.MSELoss(reduction=draw(st.sampled_from(["mean", "sum"])))
            targets = torch.randn(shape)
        else:
            layers.append(ClassesSecond())
            loss, targets = cross_entropy(draw, (shape[0], shape[-1], *shape[1:-1]))
    floating = [t.double() if t.is_floating_point() else t for t in (inputs, targets)]
    return Case(nn.Sequential(*layers).double(), floating[0], floating[1], loss.double())


def evaluated(case: Case, *quantities: str, **options: int) -> dict[str, dict[str, Tensor]]:
    arguments = (case.model, case.loss, case.inputs, case.targets, quantities)
    return evaluate(*arguments, **options).quantities


@some
@given(cases())
def test_per_sample_gradients_and_the_exact_diagonal_equal_brute_force(case: Case) -> None:
    run(case, BatchGrad(), DiagGGNExact())
    rows = reference.batch_grad(case.model, case.loss, case.inputs, case.targets)
    assert largest_error(collected(case, "grad_batch"), rows) < TOLERANCE
    gradient = {name: p.grad for name, p in reference.trained(case.model).items()}
    assert largest_error({k: v.sum(0) for k, v in rows.items()}, gradient) < TOLERANCE
    diagonal = reference.diag_ggn(case.model, case.loss, case.inputs, case.targets)
    assert largest_error(collected(case, "diag_ggn_exact"), diagonal) < TOLERANCE


@some
@given(cases(), st.integers(1, 5))
def test_chunks_change_nothing_and_a_seed_gives_the_same_bits(case: Case, chunk: int) -> None:
    quantities = ("grad", "grad_batch", "diag_ggn_mc", "diag_ggn_exact")
    whole = evaluated(case, *quantities, seed=3, mc_samples=2)
    again = evaluated(case, *quantities, seed=3, mc_samples=2)
    parts = evaluated(case, *quantities, seed=3, mc_samples=2, chunk=chunk)
    for field in quantities:
        assert all(torch.equal(whole[field][k], again[field][k]) for k in whole[field])
        assert largest_error(parts[field], whole[field]) < TOLERANCE


@some
@given(cases(), st.randoms(use_true_random=False))
def test_samples_in_another_order_give_rows_in_that_order(case: Case, random: object) -> None:
    order = list(range(len(case.inputs)))
    random.shuffle(order)
    before = evaluated(case, "grad_batch", "diag_ggn_exact")
    case.inputs, case.targets = case.inputs[order], case.targets[order]
    after = evaluated(case, "grad_batch", "diag_ggn_exact")
    moved = {name: rows[order] for name, rows in before["grad_batch"].items()}
    assert largest_error(after["grad_batch"], moved) < TOLERANCE
    assert largest_error(after["diag_ggn_exact"], before["diag_ggn_exact"]) < TOLERANCE


@some
@given(cases(), st.data())
def test_frozen_parameters_and_company_change_no_other_number(
    case: Case, data: st.DataObject
) -> None:
    alone = evaluated(case, "diag_ggn_exact")["diag_ggn_exact"]
    for parameter in case.model.parameters():
        parameter.requires_grad = data.draw(st.booleans())
    next(reversed(list(case.model.parameters()))).requires_grad = True
    run(case, DiagGGNMC(), DiagGGNExact(), BatchGrad())
    found = collected(case, "diag_ggn_exact")
    assert largest_error(found, {name: alone[name] for name in found}) < TOLERANCE
    frozen = [p for p in case.model.parameters() if not p.requires_grad]
    assert not any(hasattr(p, "diag_ggn_exact") or p.grad is not None for p in frozen)


@some
@given(cases())
def test_a_mean_is_a_sum_over_its_norm(case: Case) -> None:
    case.loss.reduction = "sum"
    total = evaluated(case, "grad", "diag_ggn_exact")
    case.loss.reduction = "mean"
    mean = evaluated(case, "grad", "diag_ggn_exact")
    outputs = case.model(case.inputs).detach()
    whole = case.loss(outputs, case.targets)
    case.loss.reduction = "sum"
    norm = case.loss(outputs, case.targets) / whole
    for field in ("grad", "diag_ggn_exact"):
        scaled = {name: norm * value for name, value in mean[field].items()}
        assert largest_error(scaled, total[field]) < TOLERANCE


@some
@given(cases(), st.integers(1, 3), st.integers(0, 2**32))
def test_the_monte_carlo_diagonal_is_that_of_the_drawn_classes(
    case: Case, draws: int, seed: int
) -> None:
    model = nn.Sequential(case.model, nn.Flatten())
    loss = extend(nn.CrossEntropyLoss())
    outputs = extend(model)(case.inputs)
    samples, classes = outputs.shape
    torch.manual_seed(seed)
    with backpack(DiagGGNMC(mc_samples=draws)):
        loss(outputs, torch.zeros(samples, dtype=torch.int64)).backward()
    torch.manual_seed(seed)
    probabilities = outputs.detach().softmax(1)
    labels = Categorical(probabilities).sample((draws,))
    factors = probabilities - nn.functional.one_hot(labels, classes)
    parameters = reference.trained(model)
    rows = reference.jacobian(model(case.inputs), list(parameters.values()))
    expected = {}
    for (name, p), row in zip(parameters.items(), rows, strict=True):
        jacobian = row.view(samples, classes, *p.shape)
        per_draw = torch.einsum("mnc,nc...->mn...", factors, jacobian)
        expected[name] = per_draw.square().sum((0, 1)) / (samples * draws)
    found = {name: p.diag_ggn_mc for name, p in parameters.items()}
    assert largest_error(found, expected) < TOLERANCE


@some
@given(cases())
def test_moments_roots_and_the_hessian_equal_brute_force(case: Case) -> None:
    run(case, BatchL2Grad(), SumGradSquared(), SqrtGGNExact(), DiagHessian())
    arguments = case.model, case.loss, case.inputs, case.targets
    rows = reference.batch_grad(*arguments)
    norms = {k: v.flatten(1).square().sum(1) for k, v in rows.items()}
    assert largest_error(collected(case, "batch_l2"), norms) < TOLERANCE
    squares = {k: v.square().sum(0) for k, v in rows.items()}
    assert largest_error(collected(case, "sum_grad_squared"), squares) < TOLERANCE
    roots = {k: v.flatten(0, 1).flatten(1) for k, v in collected(case, "sqrt_ggn_exact").items()}
    blocks = reference.ggn_blocks(*arguments)
    assert largest_error({k: v.T @ v for k, v in roots.items()}, blocks) < TOLERANCE
    hessians = reference.hessian_blocks(*arguments)
    largest = max(float(block.abs().max()) for block in hessians.values())
    for key, found in collected(case, "diag_h").items():
        error = (found.flatten() - hessians[key].diagonal()).abs().max()
        assert float(error) <= TOLERANCE * largest


@some
@given(cases())
def test_products_equal_brute_force(case: Case) -> None:
    run(case, GGNMP(), HMP())
    arguments = case.model, case.loss, case.inputs, case.targets
    for field, blocks in (
        ("ggnmp", reference.ggn_blocks(*arguments)),
        ("hmp", reference.hessian_blocks(*arguments)),
    ):
        largest = max(float(block.abs().max()) for block in blocks.values())
        for key, p in reference.trained(case.model).items():
            v = torch.linspace(-1, 1, p.numel(), dtype=p.dtype)
            error = (getattr(p, field)(v.view_as(p)).flatten() - blocks[key] @ v).abs().max()
            assert float(error) <= TOLERANCE * largest * p.numel()
