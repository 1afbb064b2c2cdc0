"""A tiny net around every kind of layer, and every loss for its output."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributions import Binomial, Categorical, MultivariateNormal, Normal
from torch.nn import functional as F

from curvserve.engine.losses import Convex, Likelihood
from tests.engine.test_layers import LAYERS
from tests.engine.zoo import LanguageModel, Wrapped

N, C = 3, 4
Build = Callable[[], tuple[nn.Module, Tensor]]


def tail() -> list[nn.Module]:
    """From any shape to C outputs by few parameters."""
    return [nn.Flatten(), nn.AdaptiveAvgPool1d(3), nn.Linear(3, C)]


def in_a_chain(name: str) -> tuple[nn.Module, Tensor]:
    layer, inputs, _ = LAYERS[name]()
    x, mode = inputs(), layer.training
    before: list[nn.Module] = []
    if x.is_floating_point():  # so that the layer is not the first and its input moves
        before = [nn.Linear(x.shape[-1], x.shape[-1]), nn.Tanh()]
        before[0].weight.requires_grad_(False)  # fewer elements, fewer derivatives
    model = nn.Sequential(*before, layer, nn.Tanh(), *tail())
    layer.train(mode)
    return model, x


def shared_layer() -> tuple[nn.Module, Tensor]:
    shared = nn.Linear(3, 3)
    return nn.Sequential(shared, nn.Tanh(), shared, nn.Tanh(), nn.Linear(3, C)), torch.randn(N, 3)


def tied_weights() -> tuple[nn.Module, Tensor]:
    first, second = nn.Linear(3, 3), nn.Linear(3, 3)
    second.weight = first.weight
    return nn.Sequential(first, nn.Tanh(), second, nn.Tanh(), nn.Linear(3, C)), torch.randn(N, 3)


def recurrent(kind: type[nn.Module], size: int, **options: Any) -> tuple[nn.Module, Tensor]:
    def forward(m: nn.Module, x: Tensor) -> Tensor:
        x = m.before(x)
        first = options.get("batch_first")
        output, last = m.body(x if first else x.transpose(0, 1))
        output = output if first else output.transpose(0, 1)
        last = torch.cat(last, -1) if isinstance(last, tuple) else last
        return m.tail(torch.cat([output.flatten(1), last.transpose(0, 1).flatten(1)], 1))

    body = kind(2, size, **options)
    model = Wrapped(forward, before=nn.Linear(2, 2), body=body, tail=nn.Sequential(*tail()))
    return model, torch.randn(N, 3, 2)  # as many steps as samples


def cell(kind: type[nn.Module]) -> tuple[nn.Module, Tensor]:
    def forward(m: nn.Module, x: Tensor) -> Tensor:
        state = None
        for step in x.unbind(1):
            state = m.cell(step, state)
        return m.head(state[0] if isinstance(state, tuple) else state)

    return Wrapped(forward, cell=kind(2, 2), head=nn.Linear(2, C)), torch.randn(N, 2, 2)


def attention(**options: Any) -> tuple[nn.Module, Tensor]:
    def forward(m: nn.Module, x: Tensor) -> Tensor:
        x = m.before(x)
        y, weights = m.attend(x, x, x, need_weights=options.get("need_weights", True))
        y = y.flatten(1)
        return m.tail(y if weights is None else torch.cat([y, weights.flatten(1)], 1))

    attend = nn.MultiheadAttention(4, 2, batch_first=True)
    model = Wrapped(forward, before=nn.Linear(4, 4), attend=attend, tail=nn.Sequential(*tail()))
    return model, torch.randn(N, 3, 4)


def encoder_layer() -> tuple[nn.Module, Tensor]:
    body = nn.TransformerEncoderLayer(3, 1, 2, dropout=0.0, batch_first=True)
    return nn.Sequential(body, *tail()).eval(), torch.randn(N, 3, 3)


def language_model() -> tuple[nn.Module, Tensor]:
    """Tied table and head, and two lines of output for each sample."""
    return LanguageModel(words=C, width=3, heads=1), torch.randint(C, (N, 2))


def bilinear() -> tuple[nn.Module, Tensor]:
    model = Wrapped(
        lambda m, x: m.tail(m.mix(x[..., :2], m.before(x[..., 2:])).tanh()),
        before=nn.Linear(2, 2), mix=nn.Bilinear(2, 2, 3), tail=nn.Sequential(*tail()),
    )  # fmt: skip
    return model, torch.randn(N, 2, 4)


def bare_parameter() -> tuple[nn.Module, Tensor]:
    model = Wrapped(
        lambda m, x: m.head(torch.tanh(m.body(x) * m.scale)),
        body=nn.Linear(3, 3), head=nn.Linear(3, C), scale=nn.Parameter(torch.randn(3)),
    )  # fmt: skip
    return model, torch.randn(N, 3)


def bare_matrix() -> tuple[nn.Module, Tensor]:
    model = Wrapped(
        lambda m, x: m.head(torch.tanh(m.body(x) @ m.weight)),
        body=nn.Linear(3, 3), head=nn.Linear(3, C), weight=nn.Parameter(torch.randn(3, 3)),
    )  # fmt: skip
    return model, torch.randn(N, 3)


def used_by_a_function() -> tuple[nn.Module, Tensor]:
    model = Wrapped(
        lambda m, x: m.head(torch.tanh(F.linear(x, m.body.weight, m.body.bias))),
        body=nn.Linear(3, 3), head=nn.Linear(3, C),
    )  # fmt: skip
    return model, torch.randn(N, 3)


def called_and_used_by_a_function() -> tuple[nn.Module, Tensor]:
    model = Wrapped(
        lambda m, x: m.head(torch.tanh(m.body(x)) @ m.body.weight),
        body=nn.Linear(3, 3), head=nn.Linear(3, C),
    )  # fmt: skip
    return model, torch.randn(N, 3)


def residual() -> tuple[nn.Module, Tensor]:
    model = Wrapped(
        lambda m, x: m.tail(F.relu(m.second(F.relu(m.first(x), inplace=True)) + x, inplace=True)),
        first=nn.Conv1d(2, 2, 3, padding=1), second=nn.Conv1d(2, 2, 3, padding=1),
        tail=nn.Sequential(*tail()),
    )  # fmt: skip
    return model, torch.randn(N, 2, 4)


def partly_frozen() -> tuple[nn.Module, Tensor]:
    model = nn.Sequential(
        nn.Linear(3, 3), nn.Tanh(), nn.Linear(3, 3), nn.Tanh(), nn.Linear(3, C)
    )  # fmt: skip
    model[0].requires_grad_(False)
    model[2].bias.requires_grad_(False)
    return model, torch.randn(N, 3)


KINDS: dict[str, Build] = {
    **{name: lambda n=name: in_a_chain(n) for name in LAYERS},
    "layer called twice": shared_layer,
    "tied weights": tied_weights,
    "partly frozen": partly_frozen,
    "rnn": lambda: recurrent(nn.RNN, 2, batch_first=True),
    "rnn relu, two layers": lambda: recurrent(nn.RNN, 1, num_layers=2, nonlinearity="relu"),
    "lstm": lambda: recurrent(nn.LSTM, 2),
    "lstm projected": lambda: recurrent(nn.LSTM, 2, proj_size=1, batch_first=True),
    "lstm bidirectional": lambda: recurrent(nn.LSTM, 1, bidirectional=True),
    "gru": lambda: recurrent(nn.GRU, 2, bias=False),
    "gru bidirectional": lambda: recurrent(nn.GRU, 1, bidirectional=True, batch_first=True),
    "rnn cell": lambda: cell(nn.RNNCell),
    "lstm cell": lambda: cell(nn.LSTMCell),
    "gru cell": lambda: cell(nn.GRUCell),
    "attention": attention,
    "attention without weights": lambda: attention(need_weights=False),
    "encoder layer": encoder_layer,
    "language model": language_model,
    "bilinear": bilinear,
    "bare parameter": bare_parameter,
    "bare matrix": bare_matrix,
    "used by a function": used_by_a_function,
    "called and used by a function": called_and_used_by_a_function,
    "residual": residual,
}


def build(kind: str) -> tuple[nn.Module, Tensor]:
    """The net in float64 with parameters that are nowhere 0 or 1; always the same."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model, x = KINDS[kind]()
        model.double()
        with torch.no_grad():
            for p in model.parameters():
                p += 0.3 * torch.randn_like(p)
        return model, x.double() if x.is_floating_point() else x


class LogCosh(nn.modules.loss._Loss):
    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        value = (input - target).cosh().log().sum()
        return value / len(input) if self.reduction == "mean" else value


@dataclass(frozen=True)
class Loss:
    """A loss of outputs ``[lines, C]``.

    ``end`` brings the net's output to what the loss takes, ``targets`` makes one or more arguments
    for such an output, ``exact`` is the loss whose Hessian the Gauss-Newton matrix is made of, and
    ``draw`` makes the gradients of the undivided loss at targets from the model's own prediction.
    """

    make: Callable[[str], nn.Module]
    targets: Callable[[Tensor], Any]
    end: Callable[[], list[nn.Module]] = list
    exact: Callable[[str], nn.Module] | None = None
    draw: Callable[[Tensor, Any, int], Tensor] | None = None
    known: bool = True  # whether the exact Fisher information is


def labels(f: Tensor) -> Tensor:
    return torch.randint(f.shape[1], (f.shape[0], *f.shape[2:]))


def numbers(f: Tensor) -> Tensor:
    return torch.randn_like(f)


def bits(f: Tensor) -> Tensor:
    return torch.randint(2, f.shape).to(f)


def counts(f: Tensor) -> Tensor:
    return torch.randint(1, 5, f.shape).to(f)


def drawn_classes(f: Tensor, targets: Any, count: int) -> Tensor:
    p = f.softmax(1).movedim(1, -1)
    y = F.one_hot(Categorical(p).sample((count,)), p.shape[-1])
    return (p - y).movedim(-1, 2)


def drawn_numbers(f: Tensor, targets: Any, count: int) -> Tensor:
    return 2 * (Normal(f, 0.5**0.5).sample((count,)) - f)


def drawn_bits(f: Tensor, targets: Any, count: int) -> Tensor:
    return f.sigmoid() - Binomial(probs=f.sigmoid()).sample((count,))


WEIGHT = torch.tensor([0.5, 1.0, 2.0, 1.5]).double()
POSITIVE = torch.tensor([2.0, 1.0, 0.5, 1.0]).double()


def weighted_classes(f: Tensor, targets: Tensor, count: int) -> Tensor:
    """Each line counts as much as its target does."""
    own = torch.stack([0 * WEIGHT[0] if y < 0 else 0.8 * WEIGHT[y] + 0.2 * WEIGHT.mean()
                       for y in targets])  # fmt: skip
    return drawn_classes(f, targets, count) * own.sqrt().unsqueeze(1)


def weighted_bits(f: Tensor, targets: Tensor, count: int) -> Tensor:
    own = WEIGHT * (POSITIVE * targets + 1 - targets)
    return drawn_bits(f, targets, count) * own.sqrt()


def weighted(reduction: str) -> nn.Module:
    return nn.CrossEntropyLoss(WEIGHT, ignore_index=-7, reduction=reduction, label_smoothing=0.2)


def one_ignored(f: Tensor) -> Tensor:
    y = labels(f)
    y[-1] = -7
    return y


def positive() -> list[nn.Module]:
    return [nn.Softplus()]


def correlated(f: Tensor) -> MultivariateNormal:
    return MultivariateNormal(f, torch.eye(f.shape[1]).to(f) + 0.5)


LOSSES: dict[str, Loss] = {
    "cross entropy": Loss(
        lambda r: nn.CrossEntropyLoss(reduction=r), labels, draw=drawn_classes
    ),
    "cross entropy, weighted": Loss(weighted, one_ignored, draw=weighted_classes),
    "cross entropy of probabilities": Loss(
        lambda r: nn.CrossEntropyLoss(reduction=r), lambda f: torch.randn_like(f).softmax(1),
        draw=drawn_classes,
    ),
    "cross entropy of positions": Loss(
        lambda r: nn.CrossEntropyLoss(reduction=r), labels,
        end=lambda: [nn.Unflatten(1, (2, 2))], draw=drawn_classes,
    ),
    "negative log-likelihood": Loss(
        lambda r: nn.NLLLoss(reduction=r), labels, end=lambda: [nn.LogSoftmax(1)],
        exact=lambda r: nn.CrossEntropyLoss(reduction=r), draw=drawn_classes,
    ),
    "squared error": Loss(lambda r: nn.MSELoss(reduction=r), numbers, draw=drawn_numbers),
    "binary": Loss(lambda r: nn.BCEWithLogitsLoss(reduction=r), bits, draw=drawn_bits),
    "binary, weighted": Loss(
        lambda r: nn.BCEWithLogitsLoss(WEIGHT, reduction=r, pos_weight=POSITIVE),
        torch.rand_like, draw=weighted_bits,
    ),
    "given variance": Loss(
        lambda r: nn.GaussianNLLLoss(reduction=r), lambda f: (numbers(f), torch.rand_like(f) + 0.1)
    ),
    "poisson": Loss(lambda r: nn.PoissonNLLLoss(reduction=r), counts),
    "poisson of the rate": Loss(
        lambda r: nn.PoissonNLLLoss(log_input=False, reduction=r), counts, end=positive
    ),
    "huber": Loss(lambda r: nn.HuberLoss(reduction=r, delta=0.9), numbers),
    "smooth": Loss(lambda r: nn.SmoothL1Loss(reduction=r, beta=0.9), numbers),
    "absolute": Loss(lambda r: nn.L1Loss(reduction=r), numbers),
    "categorical": Loss(
        lambda r: Likelihood(lambda f: Categorical(logits=f), reduction=r), labels,
        draw=drawn_classes,
    ),
    "correlated": Loss(
        lambda r: Likelihood(correlated, reduction=r), numbers,
        draw=lambda f, _, m: torch.linalg.solve(
            torch.eye(f.shape[1]).to(f) + 0.5, (f - correlated(f).sample((m,))).mT
        ).mT,
    ),
    "learned deviation": Loss(
        lambda r: Likelihood(lambda f: Normal(f[:, :2], f[:, 2:].exp()), reduction=r),
        lambda f: torch.randn_like(f[:, :2]), known=False,
    ),
    "convex": Loss(
        lambda r: Convex(lambda f, y: f.logsumexp(1) + (f - y).pow(4).sum(1), r), numbers
    ),
    "of one's own": Loss(lambda r: LogCosh(reduction=r), numbers),
}  # fmt: skip


@cache
def net(kind: str, end: str) -> tuple[nn.Module, Tensor]:
    """The net with the end that a loss needs."""
    model, x = build(kind)
    more = LOSSES[end].end()
    return (nn.Sequential(*(model if type(model) is nn.Sequential else [model]), *more), x)
