"""The three ways to train through a session, and the same steps taken in this process."""

from collections.abc import Callable, Iterable, Sequence
from contextlib import closing
from functools import cache
from typing import Any, ClassVar, Protocol

import torch
from curvserve_client import RemoteDiagGGNOptimizer, RemoteSession
from curvserve_client.types import draw_seed
from torch import Tensor, nn
from torch.optim import Optimizer

from curvserve.data import load_digits, normalise
from curvserve.engine import channels_last, evaluate
from curvserve.models.mnist_cnn import network
from curvserve.optim import DiagGGNOptimizer

SEED = 5
STEPS = 6
BATCH_SIZE = 8
LR, DAMPING = 0.05, 1.0
ROUNDING = 1e-5

Batch = tuple[Tensor, Tensor]
Weights = dict[str, Tensor]
Copying = Callable[[Any], Any]


@cache
def batches(count: int = STEPS) -> list[Batch]:
    """Digits and their labels, other ones in each batch."""
    images, labels = load_digits("train")
    images = normalise(images[: count * BATCH_SIZE])
    return list(zip(images.split(BATCH_SIZE), labels.split(BATCH_SIZE), strict=False))


def seeded_network() -> nn.Module:
    """The served model as a session of this seed begins it."""
    with torch.random.fork_rng():
        torch.manual_seed(SEED)
        return network()


class Way(Protocol):
    """How a training loop gets its gradients and has its steps taken."""

    def named_parameters(self) -> Iterable[tuple[str, nn.Parameter]]:
        """What an optimizer is given."""

    def optimizer(self, params: Any = None, **options: float) -> Optimizer:
        """An optimizer of all parameters, or of these."""

    def module(self) -> nn.Module:
        """What a trainer takes for a model."""

    def call(self, module: nn.Module, batch: Batch) -> Tensor:
        """Call a module of this kind on a batch."""

    def loss(self, batch: Batch) -> Tensor:
        """What `backward` is called on."""

    def finish(
        self, optimizer: Optimizer, batch: Batch, step: Callable[[], Any] | None = None
    ) -> None:
        """Step, or have it done so, once `backward` has been called on the batch's loss."""

    def compute(self, optimizer: Optimizer, batch: Batch) -> float:
        """What a closure does: have the gradient computed anew, and return the loss."""

    def step(self, optimizer: Optimizer, batch: Batch) -> float:
        """Take an ordinary step, and return the loss before it."""

    def copied(self, optimizer: Optimizer, copying: Copying) -> tuple["Way", Optimizer]:
        """Go on with a copy of the optimizer, and of all that it needs."""

    def weights(self) -> Weights:
        """The parameters as they are."""

    def close(self) -> None:
        """Close what a copy has opened."""


class Backward:
    """What ways have in common whose loss has a `backward`."""

    def finish(
        self: Way, optimizer: Optimizer, batch: Batch, step: Callable[[], Any] | None = None
    ) -> None:
        (step or optimizer.step)()

    def compute(self: Way, optimizer: Optimizer, batch: Batch) -> float:
        optimizer.zero_grad()
        loss = self.loss(batch)
        loss.backward()
        return loss.item()

    def step(self: Way, optimizer: Optimizer, batch: Batch) -> float:
        loss = self.compute(optimizer, batch)
        self.finish(optimizer, batch)
        return loss


class Here:
    """What ways have in common whose parameters are a module's own."""

    kind: ClassVar[Callable[..., Optimizer]]

    def __init__(self, net: nn.Module) -> None:
        self.net = net

    def named_parameters(self) -> Iterable[tuple[str, nn.Parameter]]:
        return self.net.named_parameters()

    def optimizer(self, params: Any = None, **options: float) -> Optimizer:
        params = self.net.parameters() if params is None else params
        return type(self).kind(params, **{"lr": LR, "damping": DAMPING, **options})

    def module(self) -> nn.Module:
        return self.net

    def call(self, module: nn.Module, batch: Batch) -> Tensor:
        return module(channels_last(batch[0]))

    def weights(self) -> Weights:
        return {name: p.detach().clone() for name, p in self.net.named_parameters()}

    def close(self) -> None:
        pass


class _Given(torch.autograd.Function):
    """A loss whose gradient is known."""

    @staticmethod
    def forward(ctx: Any, loss: Tensor, gradient: Sequence[Tensor], *parameters: Tensor) -> Tensor:
        ctx.gradient = gradient
        return loss.clone()

    @staticmethod
    def backward(ctx: Any, *scale: Tensor) -> Any:
        return None, None, *(scale[0] * each for each in ctx.gradient)


class Local(Here, Backward):
    """In this process: gradient and curvature of `evaluate`, and the local optimizer.

    The gradient is held against torch's own at every batch: convolutions behind a pool leave out
    what is zero, so it has other last bits.
    """

    kind = DiagGGNOptimizer

    def __init__(self, net: nn.Module | None = None, version: int = -1, *, joined: bool) -> None:
        """`joined`: whether the curvature of several batches is their mean, or the last one's."""
        super().__init__(net or seeded_network())
        self._joined = joined
        self._version = version
        self._seen: Weights = {}
        self._part = 0

    def loss(self, batch: Batch) -> Tensor:
        self._count()
        seed = draw_seed(SEED, self._version, self._part if self._joined else 0)
        asked = ["grad", "diag_ggn_mc"]
        found = evaluate(self.net, nn.CrossEntropyLoss(), *batch, asked, seed=seed)
        for name, curvature in found.quantities["diag_ggn_mc"].items():
            self._put(self.net.get_parameter(name), curvature)
        gradient = {self.net.get_parameter(n): g for n, g in found.quantities["grad"].items()}
        loss: Tensor = nn.CrossEntropyLoss()(self.call(self.net, batch), batch[1])
        for own, wanted in zip(
            gradient.values(), torch.autograd.grad(loss, [*gradient]), strict=True
        ):
            assert (own - wanted).norm() <= ROUNDING * wanted.norm()
        given: Tensor = _Given.apply(loss.detach(), [*gradient.values()], *gradient)
        return given

    def copied(self, optimizer: Optimizer, copying: Copying) -> tuple[Way, Optimizer]:
        net, optimizer = copying((self.net, optimizer))
        return Local(net, self._version, joined=self._joined), optimizer

    def _count(self) -> None:
        """Tell a further batch of the same step from the first of the next."""
        weights = self.weights()
        if self._seen and all(torch.equal(weights[name], self._seen[name]) for name in weights):
            self._part += 1
        else:
            self._version, self._part, self._seen = self._version + 1, 0, weights

    def _put(self, parameter: Any, curvature: Tensor) -> None:
        if self._joined and self._part:
            before = parameter.diag_ggn_mc
            curvature = before + (curvature - before) / (self._part + 1)
        parameter.diag_ggn_mc = curvature


class Mirrored(Here, Backward):
    """A module of one's own, whose gradient and curvature a session computes."""

    kind = RemoteDiagGGNOptimizer

    def __init__(self, session: RemoteSession, net: nn.Module | None = None) -> None:
        super().__init__(net or seeded_network())
        self.session = session
        self.mirror = session.mirror(self.net)

    def loss(self, batch: Batch) -> Tensor:
        return self.mirror.loss(*batch)

    def copied(self, optimizer: Optimizer, copying: Copying) -> tuple[Way, Optimizer]:
        net, optimizer = copying((self.net, optimizer))
        return Mirrored(self.session, net), optimizer


class Loop(Backward):
    """An ordinary loop; the weights are a session's."""

    def __init__(self, session: RemoteSession) -> None:
        self.session = session

    def named_parameters(self) -> Iterable[tuple[str, nn.Parameter]]:
        return self.session.named_parameters()

    def optimizer(self, params: Any = None, **options: float) -> Optimizer:
        params = self.session.parameters() if params is None else params
        return RemoteDiagGGNOptimizer(params, **{"lr": LR, "damping": DAMPING, **options})

    def module(self) -> nn.Module:
        return self.session.module()

    def call(self, module: nn.Module, batch: Batch) -> Tensor:
        return module(*batch)

    def loss(self, batch: Batch) -> Tensor:
        return self.session.loss(*batch)

    def copied(self, optimizer: Optimizer, copying: Copying) -> tuple[Way, Optimizer]:
        optimizer = copying(optimizer)
        return type(self)(optimizer.param_groups[0]["params"][0].session), optimizer

    def weights(self) -> Weights:
        return self.session.pull()

    def close(self) -> None:
        self.session.close()


class Fused(Loop):
    """One round trip a step."""

    def finish(
        self, optimizer: Optimizer, batch: Batch, step: Callable[[], Any] | None = None
    ) -> None:
        self.step(optimizer, batch)

    def compute(self, optimizer: Optimizer, batch: Batch) -> float:
        return self.step(optimizer, batch)

    def step(self, optimizer: Optimizer, batch: Batch) -> float:
        assert isinstance(optimizer, RemoteDiagGGNOptimizer)
        return optimizer.step_on(*batch).loss


WAYS: dict[str, Callable[[RemoteSession], Way]] = {
    "loop": Loop,
    "fused": Fused,
    "mirror": Mirrored,
}


def goes_on(way: Way, optimizer: Optimizer, copying: Copying, rest: Sequence[Batch]) -> Weights:
    """Train on the rest of the batches with a copy of the optimizer."""
    copy, optimizer = way.copied(optimizer, copying)
    with closing(copy):
        for batch in rest:
            copy.step(optimizer, batch)
        return copy.weights()
