"""What is timed: a net with its data and a quantity."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from ..models import Model, SampleSpec
from ..models.dry_run import draw

QUANTITIES = {
    "DiagGGNMC": "diag_ggn_mc",
    "DiagGGNExact": "diag_ggn_exact",
    "BatchGrad": "grad_batch",
    "KFAC": "kfac",
    "DiagHessian": "diag_h",
}
"""Name of the extension, here and at BackPACK -> where its result is put."""

SEED = 0


@dataclass(frozen=True)
class Task:
    """What a contestant is given; each has a net of its own, with the same numbers in it.

    Attributes:
        net: the net.
        loss: the loss module.
        inputs: the batch.
        targets: one per sample.
        quantity: one of `QUANTITIES`.
        mc_samples: draws per sample of those that draw.
    """

    net: nn.Module
    loss: nn.Module
    inputs: Tensor
    targets: Tensor
    quantity: str
    mc_samples: int = 1

    @property
    def field(self) -> str:
        """Where the quantity is put."""
        return QUANTITIES[self.quantity]

    @property
    def trained(self) -> dict[str, nn.Parameter]:
        """The parameters that are not frozen, by name."""
        return {name: p for name, p in self.net.named_parameters() if p.requires_grad}

    @property
    def options(self) -> dict[str, int]:
        """The extension's options."""
        return {"mc_samples": self.mc_samples} if self.quantity in ("DiagGGNMC", "KFAC") else {}


@dataclass(frozen=True)
class Case:
    """A net, its data, and the quantities that are timed.

    Attributes:
        name: what it is called.
        build: makes the net.
        data: returns as many inputs and targets as it is asked for.
        batch: how many samples.
        quantities: of `QUANTITIES`.
        loss: makes the loss module.
        mc_samples: draws per sample.
    """

    name: str
    build: Callable[[], nn.Module]
    data: Callable[[int], tuple[Tensor, Tensor]]
    batch: int
    quantities: tuple[str, ...] = ("DiagGGNMC",)
    loss: Callable[[], nn.Module] = nn.CrossEntropyLoss
    mc_samples: int = 1

    def task(
        self,
        quantity: str,
        device: torch.device,
        dtype: torch.dtype = torch.float32,
        samples: int | None = None,
    ) -> Task:
        """Return a task with a fresh net, the same each time.

        Args:
            quantity: what is to be computed.
            device: where.
            dtype: of the net and of inputs that are no indices.
            samples: a smaller batch.
        """
        torch.manual_seed(SEED)
        net = self.build().to(device, dtype)
        inputs, targets = (
            t.to(device, dtype) if t.is_floating_point() else t.to(device)
            for t in self.data(samples or self.batch)
        )
        return Task(net, self.loss().to(device), inputs, targets, quantity, self.mc_samples)


def case_of(model: Model, batch: int, quantities: tuple[str, ...]) -> Case:
    """Return the case of a served model, with random data of its specification.

    In evaluation mode: dropout draws nothing, and norms mix no samples.
    """
    data = partial(_drawn, model.inputs, model.targets)
    return Case(model.name, partial(_built, model), data, batch, quantities, model.loss)


def _built(model: Model) -> nn.Module:
    return model.build().eval()


def _drawn(inputs: SampleSpec, targets: SampleSpec, count: int) -> tuple[Tensor, Tensor]:
    return draw(inputs, count, SEED), draw(targets, count, SEED + 1)
