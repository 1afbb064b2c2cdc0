"""A model built on a device, into which any session's tensors are put before it computes."""

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TypeVar

import torch
from torch import nn

from ..engine import Evaluator
from ..models import Model
from .seeding import OwnGenerator
from .slices import Slices
from .state import SessionState, Tensors
from .team import Team, span

T = TypeVar("T")

EAGER = "eager so far"

CPU = torch.device("cpu")


@dataclass(frozen=True)
class Replica:
    """One network and one loss module of a model; used by one thread at a time.

    Attributes:
        model: the recipe.
        network: built once; its parameters are those of the state bound last.
        loss: the loss module.
        device: where they are.
        evaluator: the engine for these two.
        modes: each module of the network -> whether the model built it in training mode.
        drawing: the devices whose global generators the network's own draws come from.
        team: who computes each batch together with this one; None for nobody.
        slices: what this one keeps of what a rule reads and remembers, where it does not keep all.
    """

    model: Model
    network: nn.Module
    loss: nn.Module
    device: torch.device
    evaluator: Evaluator
    modes: Mapping[nn.Module, bool]
    drawing: Sequence[torch.device]
    team: Team | None = None
    slices: Slices | None = None

    @classmethod
    def of(
        cls,
        model: Model,
        device: torch.device,
        *,
        alone: bool = True,
        team: Team | None = None,
        sharded: bool = False,
    ) -> "Replica":
        """Build a model on a device.

        Args:
            model: the recipe.
            device: where.
            alone: whether no other device computes at the same time; another thread's passes would
                take numbers from the CPU's generator.
            team: who computes each batch together with this one.
            sharded: whether each of the team keeps slices.
        """
        with OwnGenerator(0):
            network, loss = model.build(), model.loss().to(device)
        network = network.to(device)
        modes = {module: module.training for module in network.modules()}
        drawing = dict.fromkeys([device, CPU] if alone else [device])
        evaluator = Evaluator(network, loss)
        slices = Slices(team) if team is not None and sharded else None
        return cls(model, network, loss, device, evaluator, modes, list(drawing), team, slices)

    def alone(self) -> "Replica":
        """Return the same, computing whole batches without the team."""
        return replace(self, team=None, slices=None)

    def together(self, what: Hashable, samples: int, part: Callable[[range], T]) -> T:
        """Return what all samples of a batch give, of which a team has each a part.

        Args:
            what: names what is computed.
            samples: how many there are.
            part: computes what some of them contribute to a sum.
        """
        if self.team is None:
            return part(range(samples))
        own = span(samples, self.team.rank, self.team.workers)
        return self.team.total(what, partial(part, own) if own else None)

    def bind(self, state: SessionState, *, evaluating: bool = False) -> nn.Module:
        """Put a state's tensors into the network and return it.

        Parameters are shared, not copied: nothing writes to them in place. Buffers are copied,
        because a forward pass in training mode may write to them.

        Args:
            state: the state.
            evaluating: whether all of it is to be in evaluation mode, rather than each module in
                the mode that the model built it in.
        """
        self._set_modes(evaluating=evaluating)
        for name, parameter in self.network.named_parameters():
            parameter.data = state.parameters[name]
            parameter.grad = None
        for name, buffer in self.network.named_buffers():
            buffer.data = state.buffers[name].clone()
        return self.network

    def unbound(self) -> nn.Module:
        """Return the network in the modes of a step, with buffers that no state has."""
        self._set_modes(evaluating=False)
        for buffer in self.network.buffers():
            buffer.data = buffer.clone()  # those of the last step are its state's
        return self.network

    def describe(self) -> str:
        """Tell how batches are computed."""
        found = self.evaluator
        programs, graphs = found.compiled(), found.captured()
        parts = [f"programs: {programs}"] if programs else []
        parts += [f"CUDA graphs: {graphs}"] if graphs else []
        parts += [f"no CUDA graph: {reason}" for reason in found.obstacles()]
        return "; ".join([*parts, *(f"eager: {reason}" for reason in found.refusals())]) or EAGER

    def buffers(self) -> Tensors:
        """Return the buffers as the last pass left them; the next `bind` takes others."""
        return {name: buffer.detach() for name, buffer in self.network.named_buffers()}

    def _set_modes(self, *, evaluating: bool) -> None:
        for module, training in self.modes.items():
            module.training = training and not evaluating


def initial_tensors(model: Model, seed: int) -> tuple[Tensors, Tensors]:
    """Return the parameters and buffers that a model starts from, in host memory.

    They are those of `torch.manual_seed(seed); model.build()`. May be called while another thread
    computes.

    Args:
        model: the recipe.
        seed: the session's seed.
    """
    with OwnGenerator(seed):
        network = model.build()
    parameters = {name: p.detach() for name, p in network.named_parameters()}
    return parameters, {name: b.detach() for name, b in network.named_buffers()}
