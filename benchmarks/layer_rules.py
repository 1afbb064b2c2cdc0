"""Time the rules of layer kinds against the replay that they stand in for.

    python -m benchmarks.layer_rules [--rounds 15] [--threads 2]

Each net is one layer between linear maps; a round is one pass of DiagGGNMC by the rule and one with
the rule taken out of the registry, and the plain gradient as the floor. Attention has no rule,
its projections are found in the graph: there the other side is the same attention written with four
`nn.Linear`, which have.
"""

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from curvserve.engine import backpack, extend, layers
from curvserve.engine.extensions import DiagGGNMC

N, CLASSES = 64, 10
Pass = Callable[[], object]


class Pair(nn.Module):
    """Give both halves of the features to a bilinear layer."""

    def __init__(self, width: int) -> None:
        """Make the layer."""
        super().__init__()
        self.mix = nn.Bilinear(width, width, width)

    def forward(self, x: Tensor) -> Tensor:
        """Return the output."""
        return self.mix(*x.chunk(2, -1))


class Attend(nn.Module):
    """Self-attention by torch's module."""

    def __init__(self, width: int, heads: int) -> None:
        """Make the module."""
        super().__init__()
        self.attend = nn.MultiheadAttention(width, heads, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        """Return the output."""
        return self.attend(x, x, x, need_weights=False)[0]


class ByLinear(nn.Module):
    """The same by linear layers."""

    def __init__(self, width: int, heads: int) -> None:
        """Make the layers."""
        super().__init__()
        self.q, self.k, self.v, self.out = (nn.Linear(width, width) for _ in range(4))
        self.heads = heads

    def forward(self, x: Tensor) -> Tensor:
        """Return the output."""
        q, k, v = (
            m(x).unflatten(-1, (self.heads, -1)).transpose(1, 2) for m in (self.q, self.k, self.v)
        )
        mixed = F.scaled_dot_product_attention(q, k, v).transpose(1, 2)
        return self.out(mixed.flatten(2))


def images(*space: int) -> Callable[[], Tensor]:
    """Return a maker of images of 16 channels."""
    return lambda: torch.randn(N, 16, *space)


def words(length: int, lines: int) -> Callable[[], Tensor]:
    """Return a maker of bags of words."""
    return lambda: torch.randint(lines, (N, length))


NETS: dict[str, tuple[Callable[[], nn.Module], Callable[[], Tensor]]] = {
    "GroupNorm, 16 x 16 x 16": (lambda: nn.GroupNorm(4, 16), images(16, 16)),
    "InstanceNorm2d, 16 x 16 x 16": (lambda: nn.InstanceNorm2d(16, affine=True), images(16, 16)),
    "BatchNorm1d, 16 x 256": (lambda: nn.BatchNorm1d(16).eval(), images(256)),
    "BatchNorm1d, 256": (lambda: nn.BatchNorm1d(256).eval(), lambda: torch.randn(N, 256)),
    "PReLU of channels, 16 x 16 x 16": (lambda: nn.PReLU(16), images(16, 16)),
    "Bilinear, 64 x 64 to 64": (lambda: Pair(64), lambda: torch.randn(N, 128)),
    "EmbeddingBag, 1,000 lines of 64": (lambda: nn.EmbeddingBag(1000, 64), words(20, 1000)),
    "EmbeddingBag, 20,000 lines of 64": (lambda: nn.EmbeddingBag(20000, 64), words(20, 20000)),
}


def passes(model: nn.Module, x: Tensor) -> dict[str, Pass]:
    """Return the plain gradient and the pass with DiagGGNMC."""
    y = torch.randint(CLASSES, (N,))
    plain, loss = nn.CrossEntropyLoss(), extend(nn.CrossEntropyLoss())

    def gradient() -> None:
        model.zero_grad()
        plain(model(x), y).backward()

    def curvature() -> None:
        model.zero_grad()
        with backpack(DiagGGNMC()):
            loss(model(x), y).backward()

    return {"gradient": gradient, "curvature": curvature}


def net(layer: nn.Module, x: Tensor) -> nn.Module:
    """Return a model that ends in classes, with what comes before the layer trained too."""
    before: list[nn.Module] = []
    if x.is_floating_point():
        before = [nn.Linear(x.shape[-1], x.shape[-1])]
    width = nn.Sequential(*before, layer)(x)[0].numel()
    return extend(nn.Sequential(*before, layer, nn.Flatten(), nn.Linear(width, CLASSES)))


def measure(contestants: dict[str, Pass], rounds: int) -> dict[str, float]:
    """Return the median milliseconds of each; one round runs every one once."""
    times: dict[str, list[float]] = {name: [] for name in contestants}
    for number in range(-2, rounds):
        for name in contestants if number % 2 else reversed(contestants):
            began = time.perf_counter()
            contestants[name]()
            if number >= 0:  # the first rounds warm up
                times[name].append(1000 * (time.perf_counter() - began))
    return {name: statistics.median(values) for name, values in times.items()}


def by_replay(make: Callable[[], nn.Module], x: Tensor) -> Pass:
    """Return the pass of a net whose layer kind has no rule."""
    rules = dict(layers.RULES)
    model = net(make(), x)
    curvature = passes(model, x)["curvature"]
    own = {type(m) for m in model.modules()} - {nn.Linear}

    def run() -> None:
        for kind in own:
            layers.RULES.pop(kind, None)
        try:
            curvature()
        finally:
            layers.RULES.update(rules)

    return run


def main() -> None:
    """Print one table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    print(
        f"torch {torch.__version__}, {arguments.threads} CPU threads, batch {N}, float32, "
        f"DiagGGNMC of the whole net, median of {arguments.rounds} interleaved rounds, in "
        "milliseconds\n"
    )
    print("| layer | gradient | by its rule | by replay | replay / rule |")
    print("|---|---|---|---|---|")
    for title, (make, inputs) in NETS.items():
        x = inputs()
        plain = passes(net(make(), x), x)
        contestants = {"gradient": plain["gradient"], "rule": plain["curvature"]}
        report(title, measure(contestants | {"replay": by_replay(make, x)}, arguments.rounds))
    x = torch.randn(N, 16, 64)
    plain = passes(net(ByLinear(64, 4), x), x)
    whole = passes(net(Attend(64, 4), x), x)["curvature"]
    contestants = {"gradient": plain["gradient"], "rule": plain["curvature"], "replay": whole}
    report("attention, 16 tokens of 64", measure(contestants, arguments.rounds))


def report(title: str, found: dict[str, float]) -> None:
    """Print one line."""
    numbers = " | ".join(f"{found[name]:.2f}" for name in ("gradient", "rule", "replay"))
    print(f"| {title} | {numbers} | {found['replay'] / found['rule']:.2f} |", flush=True)


if __name__ == "__main__":
    main()
