"""Every kind of layer with its options, against brute force; which way each of them goes."""

import gc
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize

from curvserve.engine import backpack, extend, layers
from curvserve.engine.errors import MixedSamplesError, UncoveredParameterError
from curvserve.engine.extensions import HMP, BatchGrad, DiagGGNExact, DiagHessian
from curvserve.engine.layers import embedding
from curvserve.engine.layers.recurrent import RecurrentReplay
from tests.engine import reference
from tests.engine.test_quantities import collected, largest_error, run
from tests.engine.zoo import Case, Wrapped, classes
from tests.engine.zoo import make as zoo_case

N = 3


def image(channels: int, *space: int) -> Callable[[], Tensor]:
    return lambda: torch.randn(N, channels, *space)


def eval_mode(norm: nn.Module) -> nn.Module:
    for name, buffer in norm.named_buffers():
        if name.startswith("running"):
            buffer.data.uniform_(0.5, 2)
    return norm.eval()


# (module, its input, whether it has a rule of its own)
LAYERS: dict[str, Callable[[], tuple[nn.Module, Callable[[], Tensor], bool]]] = {
    "linear extra axes": lambda: (nn.Linear(4, 3), lambda: torch.randn(N, 2, 3, 4), True),
    "conv1d": lambda: (nn.Conv1d(4, 6, 3, 2, 1, 2, 2), image(4, 9), True),
    "conv1d circular": lambda: (
        nn.Conv1d(2, 3, 3, padding=2, padding_mode="circular"), image(2, 6), True
    ),
    "conv2d same": lambda: (nn.Conv2d(2, 3, (1, 3), padding="same"), image(2, 4, 5), True),
    "conv2d valid": lambda: (nn.Conv2d(2, 3, 2, padding="valid", bias=False), image(2, 4, 5), True),
    "conv2d depthwise": lambda: (nn.Conv2d(4, 8, 3, groups=4), image(4, 5, 5), True),
    "conv3d": lambda: (
        nn.Conv3d(2, 4, (1, 2, 2), (1, 1, 2), (0, 1, 1), (1, 2, 1), 2), image(2, 3, 4, 4), True
    ),
    "conv3d replicate": lambda: (
        nn.Conv3d(1, 2, 2, padding=1, padding_mode="replicate"), image(1, 2, 3, 2), True
    ),
    "transposed 1d": lambda: (
        nn.ConvTranspose1d(4, 6, 3, 2, 1, 1, 2, dilation=2), image(4, 4), True
    ),
    "transposed 2d": lambda: (nn.ConvTranspose2d(2, 3, 2, 2), image(2, 3, 3), True),
    "transposed 3d": lambda: (nn.ConvTranspose3d(2, 2, 2, bias=False), image(2, 2, 2, 2), True),
    "batch norm 1d": lambda: (eval_mode(nn.BatchNorm1d(4)), image(4, 3), True),
    "batch norm 2d": lambda: (eval_mode(nn.BatchNorm2d(4)), image(4, 3, 3), True),
    "batch norm 3d": lambda: (eval_mode(nn.BatchNorm3d(2)), image(2, 2, 2, 2), True),
    "batch norm of vectors": lambda: (eval_mode(nn.BatchNorm1d(4)), image(4), True),
    "group norm": lambda: (nn.GroupNorm(2, 4), image(4, 3, 3), True),
    "group norm of vectors": lambda: (nn.GroupNorm(2, 4), image(4), True),
    "instance norm": lambda: (nn.InstanceNorm2d(3, affine=True), image(3, 3, 3), True),
    "instance norm 1d": lambda: (
        nn.InstanceNorm1d(3, affine=True, track_running_stats=True), image(3, 4), True
    ),
    "instance norm 3d": lambda: (
        eval_mode(nn.InstanceNorm3d(2, affine=True, track_running_stats=True)),
        image(2, 2, 2, 2), True,
    ),
    "layer norm": lambda: (nn.LayerNorm((3, 4)), lambda: torch.randn(N, 2, 3, 4), True),
    "rms norm": lambda: (nn.RMSNorm(4), lambda: torch.randn(N, 3, 4), True),
    "rms norm of two axes": lambda: (nn.RMSNorm((3, 4), eps=1e-3), image(2, 3, 4), True),
    "embedding": lambda: (
        nn.Embedding(5, 3, padding_idx=1), lambda: torch.randint(5, (N, 4)), True
    ),
    "embedding bag": lambda: (
        nn.EmbeddingBag(5, 3, padding_idx=0), lambda: torch.randint(5, (N, 4)), True
    ),
    "embedding bag sum": lambda: (
        nn.EmbeddingBag(5, 3, mode="sum"), lambda: torch.randint(5, (N, 4)), True
    ),
    "embedding bag max": lambda: (
        nn.EmbeddingBag(5, 3, mode="max"), lambda: torch.randint(5, (N, 4)), False
    ),
    "prelu": lambda: (nn.PReLU(), image(3, 4), True),
    "prelu of vectors": lambda: (nn.PReLU(4), image(4), True),
    "prelu by channel": lambda: (nn.PReLU(3), image(3, 4), True),
    "weight norm": lambda: (parametrizations.weight_norm(nn.Conv1d(2, 3, 2)), image(2, 4), False),
    "spectral norm": lambda: (
        parametrizations.spectral_norm(nn.Linear(4, 3)).eval(), lambda: torch.randn(N, 4), False
    ),
    "orthogonal": lambda: (
        parametrizations.orthogonal(nn.Linear(3, 3), orthogonal_map="cayley"),
        lambda: torch.randn(N, 3),
        False,
    ),
}  # fmt: skip


class LowRank(nn.Module):
    """W + B A, as LoRA has it."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.a = nn.Parameter(torch.randn(2, inputs))
        self.b = nn.Parameter(torch.randn(outputs, 2))

    def forward(self, weight: Tensor) -> Tensor:
        return weight + self.b @ self.a


def adapted() -> tuple[nn.Module, Callable[[], Tensor], bool]:
    layer = nn.Linear(4, 3)
    layer.requires_grad_(False)
    parametrize.register_parametrization(layer, "weight", LowRank(4, 3))
    return layer, lambda: torch.randn(N, 4), False


LAYERS["low rank"] = adapted


def make(name: str) -> tuple[Case, nn.Module]:
    torch.manual_seed(0)
    layer, inputs, _ = LAYERS[name]()
    x = inputs()
    width = layer(x)[0].numel()
    mode = layer.training
    before: list[nn.Module] = []
    if x.is_floating_point():  # so that the layer is not the first and its input moves
        before = [nn.Linear(x.shape[-1], x.shape[-1]), nn.Tanh()]
    model = nn.Sequential(*before, layer, nn.Tanh(), nn.Flatten(), nn.Linear(width, 4)).double()
    layer.train(mode)
    x = x.double() if x.is_floating_point() else x
    return Case(model, x, classes(N), nn.CrossEntropyLoss()), layer


def check(case: Case) -> None:
    run(case, BatchGrad(), DiagGGNExact())
    arguments = case.model, case.loss, case.inputs, case.targets
    assert largest_error(collected(case, "grad_batch"), reference.batch_grad(*arguments)) < 1e-11
    expected = reference.diag_ggn(*arguments)
    assert largest_error(collected(case, "diag_ggn_exact"), expected) < 1e-11


@pytest.mark.parametrize("name", LAYERS)
def test_layers_equal_brute_force(name: str) -> None:
    case, layer = make(name)
    assert (layers.find(layer) is not None) == LAYERS[name]()[2]
    check(case)


def recurrent(kind: type[nn.Module], batch_first: bool, states: bool, **options: object) -> Case:
    torch.manual_seed(0)
    body = kind(4, 3, batch_first=batch_first, **options)
    directions, layers_ = 1 + body.bidirectional, body.num_layers
    size = getattr(body, "proj_size", 0) or 3
    lstm = kind is nn.LSTM

    def forward(m: nn.Module, x: Tensor) -> Tensor:
        x = m.before(x)
        x = x if batch_first else x.transpose(0, 1)
        first = None
        if states:  # learned from the input: they carry cotangents too
            h = x.mean(1 if batch_first else 0)[:, :1].expand(N, size)
            h = h.expand(layers_ * directions, N, size)
            c = h[..., :1].expand(layers_ * directions, N, 3)
            first = (h, c) if lstm else h
        output, last = m.body(x, first)
        output = output if batch_first else output.transpose(0, 1)
        last = torch.cat(last, -1) if lstm else last
        return m.head(torch.cat([output.flatten(1), last.transpose(0, 1).flatten(1)], 1))

    width = 3 * size * directions + layers_ * directions * (size + 3 * lstm)
    model = Wrapped(forward, before=nn.Linear(4, 4), body=body, head=nn.Linear(width, 4)).double()
    return Case(model, torch.randn(N, 3, 4).double(), classes(N), nn.CrossEntropyLoss())


@pytest.mark.parametrize("states", [False, True])
@pytest.mark.parametrize("batch_first", [False, True])  # as many steps as samples
@pytest.mark.parametrize(
    ("kind", "options"),
    [
        (nn.RNN, {}),
        (nn.RNN, {"nonlinearity": "relu", "bias": False}),
        (nn.LSTM, {}),
        (nn.LSTM, {"num_layers": 2, "bidirectional": True}),
        (nn.LSTM, {"proj_size": 2, "num_layers": 2}),
        (nn.LSTM, {"proj_size": 2, "bidirectional": True, "bias": False}),
        (nn.GRU, {"num_layers": 2}),
        (nn.GRU, {"bidirectional": True, "bias": False}),
    ],
)
def test_recurrent_nets(
    kind: type[nn.Module], options: dict[str, object], batch_first: bool, states: bool
) -> None:
    check(recurrent(kind, batch_first, states, **options))


def test_recurrent_nets_are_unrolled_and_let_go(monkeypatch: pytest.MonkeyPatch) -> None:
    from curvserve.engine.layers import recurrent as module

    gc.collect()  # what other tests' errors still hold
    unrolled = []
    original = module._unroll
    monkeypatch.setattr(module, "_unroll", lambda *a: unrolled.append(1) or original(*a))
    case = recurrent(nn.LSTM, True, False)
    run(case, BatchGrad(), DiagGGNExact())
    assert len(unrolled) == 1  # once for all columns
    assert not module._unrolled  # gone with the graph
    assert RecurrentReplay.rows is not None


@pytest.mark.parametrize("kind", [nn.RNNCell, nn.LSTMCell, nn.GRUCell])
def test_cells_in_a_loop(kind: type[nn.Module]) -> None:
    torch.manual_seed(0)

    def forward(m: nn.Module, x: Tensor) -> Tensor:
        state = None
        for step in x.unbind(1):
            state = m.cell(step, state)
        return m.head(state[0] if isinstance(state, tuple) else state)

    model = Wrapped(forward, cell=kind(4, 3), head=nn.Linear(3, 4)).double()
    check(Case(model, torch.randn(N, 2, 4).double(), classes(N), nn.CrossEntropyLoss()))


def test_dropout_between_recurrent_layers_is_refused() -> None:
    case = recurrent(nn.LSTM, True, False, num_layers=2, dropout=0.5)
    with pytest.raises(UncoveredParameterError, match="dropout in training mode"):
        run(case, BatchGrad())
    assert all(not hasattr(p, "grad_batch") for p in case.model.parameters())
    case.model.eval()
    check(case)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"bias": False},
        {"add_bias_kv": True},
        {"add_zero_attn": True},
        {"kdim": 5, "vdim": 3},
    ],
)
@pytest.mark.parametrize("batch_first", [False, True])
def test_attention(batch_first: bool, options: dict[str, object]) -> None:
    torch.manual_seed(0)
    attend = nn.MultiheadAttention(4, 2, batch_first=batch_first, **options)
    keys, values = options.get("kdim", 4), options.get("vdim", 4)

    def forward(m: nn.Module, x: Tensor) -> Tensor:
        q, k, v = m.q(x), m.k(x), m.v(x)
        if not batch_first:
            q, k, v = q.transpose(0, 1), k.transpose(0, 1), v.transpose(0, 1)
        y, weights = m.attend(q, k, v)
        y = y if batch_first else y.transpose(0, 1)
        return m.head(y.flatten(1)) + weights.flatten(1)[:, :4]

    model = Wrapped(
        forward, q=nn.Linear(4, 4), k=nn.Linear(4, keys), v=nn.Linear(4, values),
        attend=attend, head=nn.Linear(12, 4),
    ).double()  # fmt: skip
    check(Case(model, torch.randn(N, 3, 4).double(), classes(N), nn.CrossEntropyLoss()))


@pytest.mark.parametrize("kind", [nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d])
@pytest.mark.parametrize("running", [True, False])
def test_norms_over_the_batch_are_refused(kind: type[nn.Module], running: bool) -> None:
    space = {nn.BatchNorm1d: 1, nn.BatchNorm2d: 2, nn.BatchNorm3d: 3}[kind]
    norm = kind(2, track_running_stats=running)
    model = nn.Sequential(norm, nn.Flatten(), nn.Linear(2 * 2**space, 4))
    if not running:  # uses the batch's statistics in evaluation mode too
        model.eval()
    loss = extend(nn.CrossEntropyLoss())
    x = torch.randn(N, 2, *[2] * space)
    with pytest.raises((MixedSamplesError, UncoveredParameterError)), backpack(BatchGrad()):
        loss(extend(model)(x), classes(N)).backward()
    assert all(not hasattr(p, "grad_batch") for p in model.parameters())


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.data())
def test_any_convolution(data: st.DataObject) -> None:
    draw = data.draw
    torch.manual_seed(draw(st.integers(0, 2**32)))
    space = draw(st.integers(1, 3))
    kind = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[space - 1]
    groups = draw(st.integers(1, 2))
    kernel = [draw(st.integers(1, 3)) for _ in range(space)]
    dilation = [draw(st.integers(1, 2)) for _ in range(space)]
    sizes = [
        d * (k - 1) + 1 + draw(st.integers(0, 2)) for d, k in zip(dilation, kernel, strict=True)
    ]
    mode = draw(st.sampled_from(["zeros", "circular", "replicate", "reflect"]))
    padding = [draw(st.integers(0, min(2, size - 1))) for size in sizes]
    maps = groups * draw(st.integers(1, 2))
    layer = kind(
        maps, groups * draw(st.integers(1, 2)), kernel, padding=padding, groups=groups,
        stride=[draw(st.integers(1, 2)) for _ in range(space)], dilation=dilation,
        bias=draw(st.booleans()), padding_mode=mode,
    )  # fmt: skip
    x = torch.randn(2, maps, *sizes)
    model = nn.Sequential(layer, nn.Flatten(), nn.Linear(layer(x)[0].numel(), 3)).double()
    check(Case(model, x.double(), classes(2, 3), nn.CrossEntropyLoss()))


@settings(max_examples=40, deadline=None, derandomize=True)
@given(st.data())
def test_any_transposed_convolution(data: st.DataObject) -> None:
    draw = data.draw
    torch.manual_seed(draw(st.integers(0, 2**32)))
    space = draw(st.integers(1, 3))
    kind = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)[space - 1]
    groups, axes = draw(st.integers(1, 2)), range(space)
    kernel = [draw(st.integers(1, 3)) for _ in axes]
    stride, dilation = ([draw(st.integers(1, 2)) for _ in axes] for _ in range(2))
    larger = [max(d, s) for d, s in zip(dilation, stride, strict=True)]
    maps = groups * draw(st.integers(1, 2))
    layer = kind(
        maps, groups * draw(st.integers(1, 2)), kernel, stride=stride, dilation=dilation,
        padding=[draw(st.integers(0, d * (k - 1))) for d, k in zip(dilation, kernel, strict=True)],
        output_padding=[draw(st.integers(0, most - 1)) for most in larger],
        groups=groups, bias=draw(st.booleans()),
    )  # fmt: skip
    x = torch.randn(2, maps, *(draw(st.integers(3, 4)) for _ in axes))
    model = nn.Sequential(layer, nn.Flatten(), nn.Linear(layer(x)[0].numel(), 3)).double()
    check(Case(model, x.double(), classes(2, 3), nn.CrossEntropyLoss()))


BAGS = {
    "offsets": ([0, 2, 2], {}),  # one bag is empty
    "last offset": ([0, 2, 3, 6], {"include_last_offset": True}),
    "padding": ([0, 2, 4], {"padding_idx": 2}),
    "sum": ([0, 1, 4], {"mode": "sum", "padding_idx": 1}),
    "weights": ([0, 1, 4], {"mode": "sum"}),
}


@pytest.mark.parametrize("shape", [(4,), (3, 5), (300,), (0,)])
@pytest.mark.parametrize("padding", [None, 1])
def test_tokens_of_a_sample_are_compared_or_sorted(
    shape: tuple[int, ...], padding: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = nn.Embedding(5, 3, padding_idx=padding).double()
    a, s = torch.randint(5, (N, *shape)), torch.randn(N, *shape, 3).double()
    wanted = embedding.Embedding().rows(table, "weight", a, s).square().sum(0)
    for most in (0, 256):
        monkeypatch.setattr(embedding, "_COMPARED", most)
        found = embedding.Embedding().square_sum(table, "weight", a, s)
        torch.testing.assert_close(found, wanted, rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("name", BAGS)
def test_bags_by_offsets(name: str) -> None:
    """No axis of the input is that of the samples, but one of the output is."""
    torch.manual_seed(0)
    offsets, options = BAGS[name]
    weighted = name == "weights"

    def forward(m: nn.Module, x: Tensor) -> Tensor:
        weights = m.weights[x] if weighted else None
        return m.head(m.bags(x, torch.tensor(offsets), weights).tanh())

    more = {"weights": nn.Parameter(torch.randn(5))} if weighted else {}
    bags = nn.EmbeddingBag(5, 4, **options)
    model = Wrapped(forward, bags=bags, head=nn.Linear(4, 4), **more).double()
    case = Case(model, torch.tensor([0, 1, 2, 3, 4, 0]), classes(N), nn.CrossEntropyLoss())
    if weighted:  # they are per entry, so that no sample can be told from its input
        model.weights.requires_grad_(False)
    check(case)
    run(case, DiagHessian(), HMP())
    blocks = reference.hessian_blocks(case.model, case.loss, case.inputs, case.targets)
    for key, p in reference.trained(model).items():
        torch.testing.assert_close(p.diag_h.flatten(), blocks[key].diagonal())
        torch.testing.assert_close(p.hmp(p).flatten(), blocks[key] @ p.flatten())


def test_inputs_of_a_bilinear_layer_by_name() -> None:
    torch.manual_seed(0)
    model = Wrapped(
        lambda m, x: m.head(m.mix(input2=m.second(x), input1=m.first(x)).tanh()),
        first=nn.Linear(3, 2), second=nn.Linear(3, 2), mix=nn.Bilinear(2, 2, 3),
        head=nn.Linear(3, 4),
    ).double()  # fmt: skip
    assert layers.find(model.mix) is not None
    x, y = torch.randn(N, 5, 3).double(), torch.randn(N, 5, 4).double()
    check(Case(model, x, y, nn.MSELoss()))


def test_packed_sequences_are_refused() -> None:
    """Samples of different length lie one after the other in steps: no axis is theirs."""
    model = Wrapped(
        lambda m, x: m.head(
            m.body(nn.utils.rnn.pack_padded_sequence(x, [4, 3, 2], batch_first=True))[1][0]
        ),
        body=nn.GRU(2, 4, batch_first=True),
        head=nn.Linear(4, 4),
    )
    loss = extend(nn.CrossEntropyLoss())
    with pytest.raises(UncoveredParameterError, match="is used where"), backpack(BatchGrad()):
        loss(extend(model)(torch.randn(N, 4, 2)), classes(N)).backward()
    assert all(not hasattr(p, "grad_batch") for p in model.parameters())


@pytest.mark.parametrize("repeat", [1, 3])  # by as many lines as channels no shape tells
def test_samples_on_the_last_axis_of_a_convolution(repeat: int) -> None:
    """Where they lie the rule would see positions: the container is replayed instead."""
    torch.manual_seed(0)

    def forward(m: nn.Module, x: Tensor) -> Tensor:
        lines = m.before(x).T.unsqueeze(0).repeat(repeat, 1, 1)
        return m.head(m.mix(m.norm(lines)).sum(0).T)

    model = Wrapped(
        forward, before=nn.Linear(3, 3), norm=eval_mode(nn.BatchNorm1d(3)), mix=nn.Conv1d(3, 3, 1),
        head=nn.Linear(3, 4),
    ).double()  # fmt: skip
    check(Case(model, torch.randn(5, 3).double(), classes(5), nn.CrossEntropyLoss()))


@pytest.mark.parametrize("channels", [2, 4])  # as many as positions
@pytest.mark.parametrize("kind", [nn.Conv1d, nn.ConvTranspose1d, nn.InstanceNorm1d])
def test_a_single_sample_without_a_batch_axis(kind: type[nn.Module], channels: int) -> None:
    torch.manual_seed(0)
    norm = kind is nn.InstanceNorm1d
    layer = nn.InstanceNorm1d(channels, affine=True) if norm else kind(channels, channels, 1)
    model = Wrapped(
        lambda m, x: m.head(m.layer(m.before(x)[0]).tanh().flatten().unsqueeze(0)),
        before=nn.Linear(4, 4), layer=layer, head=nn.Linear(4 * channels, 4),
    ).double()  # fmt: skip
    check(Case(model, torch.randn(1, channels, 4).double(), classes(1), nn.CrossEntropyLoss()))


@pytest.mark.parametrize("time_first", [False, True])
@pytest.mark.parametrize(
    "name", [n for n in LAYERS if LAYERS[n]()[2] and LAYERS[n]()[1]().is_floating_point()]
)
def test_frames_folded_into_the_batch_axis(name: str, time_first: bool) -> None:
    """The layers with a rule see ``[N * T, ...]`` or ``[T * N, ...]``, as those of a video do."""
    torch.manual_seed(0)
    layer, inputs, _ = LAYERS[name]()
    x = torch.stack([inputs() for _ in range(2)], 1)

    def forward(m: nn.Module, x: Tensor) -> Tensor:
        x = m.before(x)
        if time_first:
            return m.head(m.layer(x.transpose(0, 1).flatten(0, 1)).tanh().view(2, N, -1).sum(0))
        return m.head(m.layer(x.flatten(0, 1)).tanh().view(N, 2, -1).sum(1))

    width = layer(x[:, 0])[0].numel()
    mode = layer.training
    model = Wrapped(
        forward, before=nn.Linear(x.shape[-1], x.shape[-1]), layer=layer, head=nn.Linear(width, 4)
    ).double()  # fmt: skip
    layer.train(mode)
    check(Case(model, x.double(), classes(N), nn.CrossEntropyLoss()))


@pytest.mark.parametrize("name", ["first", "second"])
def test_a_result_that_is_not_used_does_not_keep_a_call_from_being_replayed(
    name: str, caplog: pytest.LogCaptureFixture
) -> None:
    """All results of cuDNN's recurrent nets come from one node of the graph."""
    case = zoo_case(f"{name}_of_two_results_of_one_node")
    extend(case.model), extend(case.loss)
    with caplog.at_level("INFO", "curvserve.engine"), backpack(BatchGrad(), debug=True):
        case.loss(case.model(case.inputs), case.targets).backward()
    assert "BatchGrad: weight of Twofold by Replay" in caplog.text
