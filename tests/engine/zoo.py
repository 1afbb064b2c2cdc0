"""Small models of every structure that the engine must get right, each with a batch and a loss."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations
from torch.utils.checkpoint import checkpoint


@dataclass
class Case:
    model: nn.Module
    inputs: Tensor
    targets: Tensor
    loss: nn.Module
    samples: int | None = None  # where it is not the length of the output


Builder = Callable[[], Case]
ZOO: dict[str, Builder] = {}


def case(build: Builder) -> Builder:
    ZOO[build.__name__] = build
    return build


def make(name: str, seed: int = 0) -> Case:
    """The case in float64, from a fixed seed, leaving the global generator alone."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        made = ZOO[name]()
    made.model.double()
    made.loss.double()
    if made.inputs.is_floating_point():
        made.inputs = made.inputs.double()
    if made.targets.is_floating_point():
        made.targets = made.targets.double()
    return made


def classes(n: int, c: int = 4) -> Tensor:
    return torch.randint(c, (n,))


class Wrapped(nn.Module):
    """A module whose forward is given as a function."""

    def __init__(self, forward: Callable[..., Tensor], **members: object) -> None:
        super().__init__()
        for name, member in members.items():
            setattr(self, name, member)
        self._function = forward

    def forward(self, x: Tensor) -> Tensor:
        return self._function(self, x)


@case
def mlp() -> Case:
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 4))
    return Case(model, torch.randn(5, 6), classes(5), nn.CrossEntropyLoss())


@case
def mlp_squared_error() -> Case:
    model = nn.Sequential(nn.Linear(6, 8), nn.Sigmoid(), nn.Linear(8, 3))
    return Case(model, torch.randn(5, 6), torch.randn(5, 3), nn.MSELoss())


@case
def regression_to_a_number() -> Case:
    model = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 1), nn.Flatten(0))
    return Case(model, torch.randn(5, 6), torch.randn(5), nn.MSELoss())


@case
def mlp_sum() -> Case:
    model = nn.Sequential(nn.Linear(6, 8), nn.SiLU(), nn.Linear(8, 4, bias=False))
    return Case(model, torch.randn(5, 6), classes(5), nn.CrossEntropyLoss(reduction="sum"))


@case
def squared_error_sum_of_any_shape() -> Case:
    model = nn.Sequential(nn.Conv2d(2, 3, 3), nn.Tanh())
    return Case(
        model, torch.randn(3, 2, 4, 4), torch.randn(3, 3, 2, 2), nn.MSELoss(reduction="sum")
    )


@case
def weighted_classes() -> Case:
    loss = nn.CrossEntropyLoss(weight=torch.rand(4) + 0.5, ignore_index=2, label_smoothing=0.1)
    return Case(nn.Linear(6, 4), torch.randn(7, 6), torch.tensor([0, 1, 2, 3, 0, 2, 1]), loss)


@case
def soft_targets() -> Case:
    targets = torch.randn(5, 4).softmax(1)
    loss = nn.CrossEntropyLoss(weight=torch.rand(4) + 0.5, label_smoothing=0.2)
    return Case(nn.Linear(6, 4), torch.randn(5, 6), targets, loss)


@case
def seed_cnn() -> Case:
    model = nn.Sequential(
        nn.Conv2d(1, 3, 5), nn.ReLU(), nn.MaxPool2d(2, 2),
        nn.Conv2d(3, 4, 3), nn.ReLU(), nn.MaxPool2d(2, 2),
        nn.Flatten(), nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 4),
    )  # fmt: skip
    return Case(model, torch.randn(4, 1, 16, 16), classes(4), nn.CrossEntropyLoss())


@case
def convolution_options() -> Case:
    model = nn.Sequential(
        nn.Conv2d(4, 6, 3, stride=2, padding=1, groups=2), nn.ELU(),
        nn.Conv2d(6, 4, (2, 3), padding="same", dilation=2, bias=False), nn.ELU(),
        nn.Conv2d(4, 4, 3, padding=(1, 2), padding_mode="circular"), nn.ELU(),
        nn.Conv2d(4, 4, 3, padding=1, padding_mode="reflect"),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(),
    )  # fmt: skip
    return Case(model, torch.randn(3, 4, 8, 8), classes(3), nn.CrossEntropyLoss())


@case
def segmentation() -> Case:
    model = nn.Sequential(nn.Conv2d(2, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 3, 1))
    targets = torch.randint(3, (3, 4, 4))
    return Case(model, torch.randn(3, 2, 4, 4), targets, nn.CrossEntropyLoss())


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(4, 4, 3, padding=1)
        self.second = nn.Conv2d(4, 4, 3, padding=1)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.relu(self.second(self.relu(self.first(x))) + x)


@case
def residual_with_inplace_relu() -> Case:
    model = nn.Sequential(
        nn.Conv2d(2, 4, 3), nn.ReLU(inplace=True), Residual(), Residual(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 4),
    )  # fmt: skip
    return Case(model, torch.randn(3, 2, 6, 6), classes(3), nn.CrossEntropyLoss())


@case
def norms_in_eval_mode() -> Case:
    model = nn.Sequential(
        nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.GroupNorm(2, 4), nn.Flatten(),
        nn.Linear(16, 4), nn.BatchNorm1d(4),
    ).eval()  # fmt: skip
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            nn.init.uniform_(module.running_var, 0.5, 2)
            nn.init.normal_(module.running_mean)
            nn.init.normal_(module.weight)
    return Case(model, torch.randn(3, 2, 4, 4), classes(3), nn.CrossEntropyLoss())


@case
def same_linear_twice() -> Case:
    shared = nn.Linear(6, 6)
    model = nn.Sequential(shared, nn.Tanh(), shared, nn.Tanh(), nn.Linear(6, 4))
    return Case(model, torch.randn(5, 6), classes(5), nn.CrossEntropyLoss())


@case
def tied_weights() -> Case:
    first, second = nn.Linear(6, 6), nn.Linear(6, 6)
    second.weight = first.weight
    return Case(
        nn.Sequential(first, nn.Tanh(), second), torch.randn(5, 6), torch.randn(5, 6), nn.MSELoss()
    )


def encoder() -> nn.Module:
    layer = nn.TransformerEncoderLayer(8, 2, 12, dropout=0.0, batch_first=True)
    body = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
    return Wrapped(lambda m, x: m.head(m.body(x).mean(1)), body=body, head=nn.Linear(8, 4))


@case
def transformer_encoder() -> Case:
    return Case(encoder().train(), torch.randn(3, 5, 8), classes(3), nn.CrossEntropyLoss())


@case
def transformer_encoder_in_eval_mode() -> Case:
    return Case(encoder().eval(), torch.randn(3, 5, 8), classes(3), nn.CrossEntropyLoss())


@case
def transformer_encoder_time_first() -> Case:
    layer = nn.TransformerEncoderLayer(8, 2, 12, dropout=0.0, norm_first=True)
    model = Wrapped(
        lambda m, x: m.head(m.body(x.transpose(0, 1)).mean(0)),
        body=nn.TransformerEncoder(layer, 1, enable_nested_tensor=False),
        head=nn.Linear(8, 4),
    )
    # As many samples as time steps: only measuring tells the axes apart.
    return Case(model, torch.randn(4, 4, 8), classes(4), nn.CrossEntropyLoss())


@case
def attention_with_a_shared_mask() -> Case:
    mask = torch.ones(4, 4, dtype=torch.bool).triu(1)
    model = Wrapped(
        lambda m, x: m.head(
            m.attend(x, x, x, attn_mask=mask.to(x.device), need_weights=False)[0][:, -1]
        ),
        attend=nn.MultiheadAttention(8, 2, batch_first=True),
        head=nn.Linear(8, 4),
    )
    return Case(model, torch.randn(4, 4, 8), classes(4), nn.CrossEntropyLoss())


@case
def attention_over_the_samples() -> Case:
    """Each output reads all inputs, but no parameter lies before the mixing."""
    model = Wrapped(
        lambda m, x: m.head(m.attend(x, x, x, need_weights=False)[0].mean(1)),
        attend=nn.MultiheadAttention(8, 2, batch_first=False),
        head=nn.Linear(8, 4),
    )
    return Case(model, torch.randn(3, 5, 8), classes(3), nn.CrossEntropyLoss())


@case
def tokens_flattened_inside() -> Case:
    def forward(m: nn.Module, x: Tensor) -> Tensor:
        n, t, d = x.shape
        return m.head(m.norm(m.body(x.reshape(n * t, d)).tanh()).reshape(n, t, -1).sum(1))

    model = Wrapped(forward, body=nn.Linear(6, 8), norm=nn.LayerNorm(8), head=nn.Linear(8, 4))
    return Case(model, torch.randn(3, 5, 6), classes(3), nn.CrossEntropyLoss())


@case
def tokens_flattened_time_first() -> Case:
    def forward(m: nn.Module, x: Tensor) -> Tensor:
        n, t, d = x.shape
        flat = m.body(x.transpose(0, 1).reshape(t * n, d)).tanh()
        return m.head(flat.reshape(t, n, -1).sum(0))

    model = Wrapped(forward, body=nn.Linear(6, 8), head=nn.Linear(8, 4))
    return Case(model, torch.randn(3, 5, 6), classes(3), nn.CrossEntropyLoss())


@case
def embedding_with_padding() -> Case:
    model = Wrapped(
        lambda m, x: m.head(m.norm(m.table(x)).mean(1)),
        table=nn.Embedding(7, 6, padding_idx=0),
        norm=nn.LayerNorm(6),
        head=nn.Linear(6, 4),
    )
    return Case(model, torch.randint(7, (5, 4)), classes(5), nn.CrossEntropyLoss())


class LanguageModel(nn.Module):
    """Tied embedding and head, positions added from an index that has no samples."""

    def __init__(self, words: int = 7, width: int = 6, heads: int = 2) -> None:
        super().__init__()
        self.table = nn.Embedding(words, width)
        self.places = nn.Embedding(4, width)
        self.attend = nn.MultiheadAttention(width, heads, batch_first=True)
        self.norm = nn.LayerNorm(width)

    def forward(self, x: Tensor) -> Tensor:
        h = self.table(x) + self.places(torch.arange(x.shape[1], device=x.device))
        mask = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool, device=x.device).triu(1)
        h = h + self.attend(h, h, h, attn_mask=mask, need_weights=False)[0]
        return F.linear(self.norm(h), self.table.weight).flatten(0, 1)


@case
def language_model() -> Case:
    targets = torch.randint(7, (12,))
    return Case(
        LanguageModel(), torch.randint(7, (3, 4)), targets, nn.CrossEntropyLoss(), samples=3
    )


@case
def recurrent() -> Case:
    model = Wrapped(
        lambda m, x: m.head(m.body(x)[0][:, -1]),
        body=nn.GRU(5, 6, batch_first=True),
        head=nn.Linear(6, 4),
    )
    return Case(model, torch.randn(3, 4, 5), classes(3), nn.CrossEntropyLoss())


@case
def recurrent_time_first_with_state() -> Case:
    model = Wrapped(
        lambda m, x: m.head(m.body(x.transpose(0, 1))[1][0].transpose(0, 1).flatten(1)),
        body=nn.LSTM(5, 3, num_layers=2, bidirectional=True),
        head=nn.Linear(12, 4),
    )
    return Case(model, torch.randn(3, 4, 5), classes(3), nn.CrossEntropyLoss())


@case
def generic_layers() -> Case:
    model = nn.Sequential(
        nn.Conv1d(2, 4, 3), nn.PReLU(4), nn.ConvTranspose1d(4, 3, 2, stride=2),
        nn.InstanceNorm1d(3, affine=True), nn.Flatten(), nn.Linear(12, 4),
    )  # fmt: skip
    return Case(model, torch.randn(3, 2, 4), classes(3), nn.CrossEntropyLoss())


@case
def bilinear() -> Case:
    model = Wrapped(lambda m, x: m.mix(x[:, :3], x[:, 3:]), mix=nn.Bilinear(3, 3, 4))
    return Case(model, torch.randn(5, 6), classes(5), nn.CrossEntropyLoss())


@case
def weight_norm() -> Case:
    model = nn.Sequential(parametrizations.weight_norm(nn.Linear(6, 8)), nn.Tanh(), nn.Linear(8, 4))
    return Case(model, torch.randn(5, 6), classes(5), nn.CrossEntropyLoss())


@case
def bare_parameter_on_a_container() -> Case:
    model = Wrapped(
        lambda m, x: m.head(torch.tanh(m.body(x) * m.scale)),
        body=nn.Linear(6, 8),
        head=nn.Linear(8, 4),
        scale=nn.Parameter(torch.randn(8)),
    )
    return Case(model, torch.randn(5, 6), classes(5), nn.CrossEntropyLoss())


@case
def parameter_used_by_a_function() -> Case:
    model = Wrapped(
        lambda m, x: m.head(torch.tanh(F.linear(x, m.body.weight, m.body.bias))),
        body=nn.Linear(6, 8),
        head=nn.Linear(8, 4),
    )
    return Case(model, torch.randn(5, 6), classes(5), nn.CrossEntropyLoss())


@case
def called_and_used_by_a_function() -> Case:
    model = Wrapped(
        lambda m, x: m.head(torch.tanh(m.body(x)) @ m.body.weight),
        body=nn.Linear(6, 8, bias=False),
        head=nn.Linear(6, 4),
    )
    return Case(model, torch.randn(5, 6), classes(5), nn.CrossEntropyLoss())


@case
def frozen_layer() -> Case:
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 4))
    model[0].requires_grad_(False)
    model[2].bias.requires_grad_(False)
    return Case(model, torch.randn(5, 6), classes(5), nn.CrossEntropyLoss())


@case
def one_sample() -> Case:
    return Case(encoder(), torch.randn(1, 5, 8), classes(1), nn.CrossEntropyLoss())


@case
def keyword_arguments_and_tuples() -> Case:
    class Inner(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.randn(6, 8))

        def forward(self, pair: tuple[Tensor, Tensor], *, gain: Tensor) -> dict[str, Tensor]:
            return {"sum": (pair[0] + pair[1]) @ self.weight * gain}

    model = Wrapped(
        lambda m, x: m.head(m.body((x, x.square()), gain=x[:, :1])["sum"].tanh()),
        body=Inner(),
        head=nn.Linear(8, 4),
    )
    return Case(model, torch.randn(5, 6), classes(5), nn.CrossEntropyLoss())


class Doubling(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor) -> Tensor:
        return 2 * x

    @staticmethod
    def setup_context(ctx: object, inputs: tuple[Tensor], output: Tensor) -> None:
        pass

    @staticmethod
    def backward(ctx: object, gradient: Tensor) -> Tensor:
        return 2 * gradient


@case
def custom_autograd_function() -> Case:
    model = Wrapped(
        lambda m, x: m.head(Doubling.apply(m.body(x)).tanh()),
        body=nn.Linear(6, 8),
        head=nn.Linear(8, 4),
    )
    return Case(model, torch.randn(5, 6), classes(5), nn.CrossEntropyLoss())


class Twice(torch.autograd.Function):
    """A product, and its transpose as a second result of the same node, as cuDNN's nets have it."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
        y = x @ weight
        return y, y.mT.clone()

    @staticmethod
    def setup_context(ctx: object, inputs: tuple[Tensor, Tensor], output: object) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx: object, first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
        x, weight = ctx.saved_tensors
        cotangent = first + second.mT
        return cotangent @ weight.mT, x.mT @ cotangent


class Twofold(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(6, 8))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return Twice.apply(x, self.weight)


@case
def first_of_two_results_of_one_node() -> Case:
    model = Wrapped(lambda m, x: m.head(m.body(x)[0].tanh()), body=Twofold(), head=nn.Linear(8, 4))
    return Case(model, torch.randn(5, 6), classes(5), nn.CrossEntropyLoss())


@case
def second_of_two_results_of_one_node() -> Case:
    model = Wrapped(
        lambda m, x: m.head(m.body(x)[1].tanh().mT), body=Twofold(), head=nn.Linear(8, 4)
    )
    return Case(model, torch.randn(5, 6), classes(5), nn.CrossEntropyLoss())


@case
def output_modified_in_place() -> Case:
    model = Wrapped(
        lambda m, x: m.head(m.body(x).mul_(2).tanh_()).add_(1),
        body=nn.Linear(6, 8),
        head=nn.Linear(8, 4),
    )
    return Case(model, torch.randn(5, 6), classes(5), nn.CrossEntropyLoss())


@case
def auxiliary_result() -> Case:
    class Body(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.randn(6, 8))
            self.kept: list[Tensor] = []

        def forward(self, x: Tensor) -> Tensor:
            hidden = x @ self.weight
            self.kept = [hidden]  # leaves the call by another way than its result
            return hidden.tanh()

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body, self.head = Body(), nn.Linear(8, 4)

        def forward(self, x: Tensor) -> Tensor:
            y = self.body(x)
            return self.head(y + self.body.kept[0])

    return Case(Model(), torch.randn(5, 6), classes(5), nn.CrossEntropyLoss())


@case
def checkpointed() -> Case:
    model = Wrapped(
        lambda m, x: m.head(checkpoint(m.body, x, use_reentrant=False)),
        body=nn.Sequential(nn.Linear(6, 8), nn.Tanh()),
        head=nn.Linear(8, 4),
    )
    return Case(model, torch.randn(5, 6), classes(5), nn.CrossEntropyLoss())


@case
def cell_state_used_inside_and_out() -> Case:
    def forward(m: nn.Module, x: Tensor) -> Tensor:
        state = None
        for step in x.unbind(1):
            state = m.cell(step, state)
        return m.head(state[0])

    model = Wrapped(forward, cell=nn.LSTMCell(4, 3), head=nn.Linear(3, 4))
    return Case(model, torch.randn(3, 3, 4), classes(3), nn.CrossEntropyLoss())


@case
def result_made_of_another_result() -> Case:
    class Body(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Parameter(torch.randn(6, 5)), nn.Parameter(torch.randn(5))

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            hidden = (x @ self.first).tanh()
            return hidden, (hidden * self.second).sin()

    class Model(nn.Module):
        def __init__(self, both: bool) -> None:
            super().__init__()
            self.body, self.head, self.both = Body(), nn.Linear(5, 4), both

        def forward(self, x: Tensor) -> Tensor:
            hidden, last = self.body(x)
            return self.head(last + hidden if self.both else last)

    model = nn.Sequential(Model(True), nn.Tanh(), nn.Linear(4, 6), Model(False))
    return Case(model, torch.randn(5, 6), classes(5), nn.CrossEntropyLoss())
