"""Loss, gradient and curvature of one batch in one call, without hooks left behind."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import cache
from inspect import signature
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge

from curvserve.engine import context, losses, memory_format
from curvserve.engine.draws import GlobalDraws, SeededDraws
from curvserve.engine.errors import NotRecordedError, UnsupportedLossError
from curvserve.engine.first_order import FirstOrder
from curvserve.engine.graph import Graph, read
from curvserve.engine.losses import Draws, LossAt, LossRule
from curvserve.engine.plan import Plan, plan
from curvserve.engine.quantities import (
    QUANTITIES,
    GradientQuantity,
    Quantity,
    Subsampled,
)
from curvserve.engine.recording import attached, is_attached
from curvserve.engine.rows import Rows
from curvserve.engine.second_order import Pass

__all__ = ["DrawsOf", "Evaluation", "evaluate", "evaluate_with", "resolve"]

GRADIENT = "grad"

DrawsOf = Callable[[int, int], Draws]
"""From the number of lines of a whole batch and the first line of a part: the part's draws."""


@dataclass(frozen=True)
class Evaluation:
    """What :func:`evaluate` returns.

    Attributes:
        loss: The loss, 0-dimensional.
        outputs: The model's output, detached.
        quantities: For each quantity asked for, in that order, the result for each parameter.
    """

    loss: Tensor
    outputs: Tensor
    quantities: dict[str, dict[str, Any]]


def evaluate(
    model: nn.Module,
    loss: nn.Module,
    inputs: Tensor,
    targets: Tensor,
    quantities: Sequence[str | Quantity] = (GRADIENT, "diag_ggn_mc"),
    *,
    seed: int | None = None,
    mc_samples: int = 1,
    chunk: int | None = None,
) -> Evaluation:
    """Computes the loss of a batch together with quantities of its parameters.

    Neither the model nor the loss needs to be extended, and neither is changed: no attribute of
    a parameter is written, ``p.grad`` included.

    Args:
        model: The model, in the mode (training or evaluation) that it is to be used in.
        loss: A loss module with a curvature rule, reduced by ``mean`` or ``sum``.
        inputs: The model's input, samples first.
        targets: The targets, samples first; several lines for each sample, next to each other,
            where the model's output has several.
        quantities: ``"grad"`` and the names (savefields) of extensions, or extensions themselves.
        seed: Seeds the Monte-Carlo draws: the same seed gives the same numbers, whatever the
            chunks. Without it they come from torch's global generator, as in ``backpack``.
        mc_samples: The draws for each sample of quantities given by name.
        chunk: The most samples that go through the model at once, to bound memory; by default
            the whole batch. Results are those of the whole batch up to rounding.

    Returns:
        The loss, the output, and for each quantity a mapping from the names of the parameters that
        require gradients to tensors on their device.

    Raises:
        ValueError: A quantity is unknown or asked for twice, ``chunk`` is not positive, or it is
            combined with subsampling.
        UnsupportedLossError: The loss has no curvature rule.
        EngineError: The model, the loss or the batch admits no such quantity.
    """
    asked = resolve(quantities, mc_samples)
    if chunk is not None and chunk < 1:
        raise ValueError(f"chunk must be a positive number of samples, got {chunk}")
    for quantity in asked.values():
        if chunk is not None and isinstance(quantity, Subsampled) and quantity.subsampling:
            raise ValueError(f"{quantity!r}: subsampling and chunk cannot be combined")

    def draws(total: int, offset: int) -> Draws:
        return GlobalDraws() if seed is None else SeededDraws(seed, total, offset)

    return evaluate_with(model, loss, inputs, targets, asked, draws, chunk)


def evaluate_with(
    model: nn.Module,
    loss: nn.Module,
    inputs: Tensor,
    targets: Tensor,
    asked: Mapping[str, Quantity | None],
    draws: DrawsOf,
    chunk: int | None = None,
) -> Evaluation:
    """:func:`evaluate`, of quantities by name and with any source of random numbers."""
    rule = losses.find(loss)
    if rule is None:
        raise UnsupportedLossError(losses.refusal(loss))
    with context.own_passes(), nullcontext() if is_attached(model) else attached(model):
        parts = list(_parts(model, loss, rule, inputs, targets, asked, draws, chunk))
    return _merge(parts, asked)


def resolve(quantities: Sequence[str | Quantity], mc_samples: int) -> dict[str, Quantity | None]:
    """Quantities by name; None stands for the gradient."""
    asked: dict[str, Quantity | None] = {}
    for quantity in quantities:
        name = quantity if isinstance(quantity, str) else quantity.savefield
        if name in asked:
            raise ValueError(f"quantity '{name}' is asked for twice")
        if isinstance(quantity, Quantity):
            asked[name] = quantity
        elif name == GRADIENT:
            asked[name] = None
        elif name in QUANTITIES:
            kind: Callable[..., Quantity] = QUANTITIES[name]
            asked[name] = kind(mc_samples=mc_samples) if _draws_samples(kind) else kind()
        else:
            known = ", ".join([GRADIENT, *sorted(QUANTITIES)])
            raise ValueError(f"unknown quantity '{name}'; there are: {known}")
    return asked


@cache
def _draws_samples(kind: Callable[..., Quantity]) -> bool:
    return "mc_samples" in signature(kind).parameters


def _parts(
    model: nn.Module,
    loss: nn.Module,
    rule: LossRule,
    inputs: Tensor,
    targets: Tensor,
    asked: Mapping[str, Quantity | None],
    draws: DrawsOf,
    chunk: int | None,
) -> Iterator[Evaluation]:
    """Evaluates the batch part by part, each with its share of the whole batch's loss."""
    size = len(inputs) if chunk is None else chunk
    lines = max(1, len(targets) // max(1, len(inputs)))
    for start in range(0, len(inputs), size):
        own = targets[start * lines : (start + size) * lines]
        batch = _Batch(
            model, loss, rule, inputs[start : start + size], own, targets, len(inputs), start
        )
        yield _evaluate(batch, asked, draws)


@dataclass(frozen=True)
class _Batch:
    """A part of a batch.

    Attributes:
        whole: The targets of the whole batch.
        total: The number of samples in it.
        start: The index of the first sample of this part.
    """

    model: nn.Module
    loss: nn.Module
    rule: LossRule
    inputs: Tensor
    targets: Tensor
    whole: Tensor
    total: int
    start: int

    def share(self, outputs: Tensor) -> float | Tensor:
        """By what the loss of this part is multiplied so that all parts add up to the batch's."""
        if len(self.targets) == len(self.whole):
            return 1.0
        lines = len(outputs) * self.total // len(self.inputs)
        all_outputs = outputs.detach()[:1].expand(lines, *outputs.shape[1:])
        part = self.rule.norm(self.loss, outputs.detach(), self.targets)
        return part / self.rule.norm(self.loss, all_outputs, self.whole)


def _evaluate(batch: _Batch, asked: Mapping[str, Quantity | None], draws: DrawsOf) -> Evaluation:
    named = {name: p for name, p in batch.model.named_parameters() if p.requires_grad}
    with torch.enable_grad():
        outputs = memory_format.run(batch.model, batch.inputs)
        share = batch.share(outputs)
        value = batch.loss(outputs, batch.targets) * share
    found, first = _extensions(batch, outputs, share, asked, list(named.values()), draws)
    gradients = torch.autograd.grad(value, list(named.values()), allow_unused=True)
    if first is not None:
        first.unfinished()
    found[GRADIENT] = {
        p: torch.zeros_like(p) if g is None else g
        for p, g in zip(named.values(), gradients, strict=True)
    }
    return Evaluation(
        value.detach(),
        outputs.detach(),
        {name: {key: found[name][p] for key, p in named.items()} for name in asked},
    )


def _extensions(
    batch: _Batch,
    outputs: Tensor,
    share: float | Tensor,
    asked: Mapping[str, Quantity | None],
    parameters: Sequence[Tensor],
    draws: DrawsOf,
) -> tuple[dict[str, dict[Tensor, Any]], FirstOrder | None]:
    """The states of all extensions; those made of the gradient are filled in as it is computed."""
    found: dict[str, dict[Tensor, Any]] = {}
    extensions = [q for q in asked.values() if q is not None]
    if not extensions:
        return found, None
    values, node = outputs.detach(), outputs.grad_fn
    losses.check(batch.rule, batch.loss, values, batch.targets)
    if node is None:
        raise NotRecordedError("the model's output does not depend on any trainable parameter")
    edge = GradientEdge(node, outputs.output_nr)
    graph = read(edge)
    way = plan(graph, edge, values)
    loss = LossAt(batch.rule, batch.loss, values, batch.targets, share, way.layout, way.samples)
    absent = _absent(graph, way, parameters)
    first: list[GradientQuantity] = []
    with torch.no_grad():
        at = Pass(graph, way, edge, loss, _draws(batch, outputs, draws), absent)
        for quantity in extensions:
            states = quantity.compute(at)
            if states is None:
                assert isinstance(quantity, GradientQuantity)
                first.append(quantity)
                states = {p: quantity.reduce(Rows((), way.samples, p.detach())) for p in absent}
            found[quantity.savefield] = states
    if not first:
        return found, None

    def done(parameter: Tensor, states: dict[str, Any]) -> None:
        for field, state in states.items():
            found[field][parameter] = state

    caught = FirstOrder(first, done)
    caught.watch(graph, way)
    return found, caught


def _absent(graph: Graph, way: Plan, parameters: Sequence[Tensor]) -> list[Tensor]:
    """The parameters that the loss does not depend on."""
    accounted = {
        graph.calls[account.call].call.module.get_parameter(name)
        for account in way.accounts
        for name in account.names
    }
    return [p for p in parameters if p not in accounted]


def _draws(batch: _Batch, outputs: Tensor, draws: DrawsOf) -> Draws:
    lines = len(outputs) // len(batch.inputs)
    return draws(batch.total * lines, batch.start * lines)


def _merge(parts: Sequence[Evaluation], asked: Mapping[str, Quantity | None]) -> Evaluation:
    """Puts the parts of a batch together, and makes results of the states."""
    quantities: dict[str, dict[str, Any]] = {}
    for name, quantity in asked.items():
        quantities[name] = {}
        for key in parts[0].quantities[name]:
            states = [part.quantities[name][key] for part in parts]
            quantities[name][key] = _together(states, quantity)
    if len(parts) == 1:
        return Evaluation(parts[0].loss, parts[0].outputs, quantities)
    return Evaluation(
        torch.stack([part.loss for part in parts]).sum(0),
        torch.cat([part.outputs for part in parts]),
        quantities,
    )


def _together(states: Sequence[Any], quantity: Quantity | None) -> Any:
    if quantity is None:
        return states[0] if len(states) == 1 else torch.stack(list(states)).sum(0)
    return quantity.finish(states[0] if len(states) == 1 else quantity.merge(states))
