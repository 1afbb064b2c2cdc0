"""Loss, gradient and curvature of one batch in one call, without hooks left behind."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import cache, cached_property
from inspect import signature
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge

from curvserve.engine import context, losses, memory_format, share
from curvserve.engine.convolutions import sent_back
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
from curvserve.engine.quantities.diagonal import square_sums
from curvserve.engine.recording import attached, is_attached
from curvserve.engine.rows import Rows
from curvserve.engine.second_order import Pass

__all__ = [
    "DrawsOf",
    "Evaluation",
    "Part",
    "evaluate",
    "evaluate_part",
    "evaluate_with",
    "merge_parts",
    "part_loss",
    "resolve",
]

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


@dataclass(frozen=True)
class Part:
    """Which samples of a batch somebody computes, while others compute the rest.

    Attributes:
        start: The index of the first one.
        total: The number of samples in the batch.
    """

    start: int
    total: int

    def own(self, targets: Tensor, samples: int) -> Tensor:
        """The lines of the batch's targets that belong to so many samples."""
        lines = max(1, len(targets) // max(1, self.total))
        return targets[self.start * lines : (self.start + samples) * lines]


def evaluate_part(
    model: nn.Module,
    loss: nn.Module,
    inputs: Tensor,
    targets: Tensor,
    quantities: Sequence[str | Quantity],
    part: Part,
    *,
    seed: int,
    mc_samples: int = 1,
) -> Evaluation:
    """Computes what some samples contribute to the quantities of their batch.

    The parts together are the batch: :func:`merge_parts` makes of them what :func:`evaluate` of the
    whole batch with the same seed returns, up to rounding, however it was divided.

    Args:
        model: As in :func:`evaluate`; nothing that it does may depend on other samples.
        loss: As in :func:`evaluate`.
        inputs: The part's inputs.
        targets: The targets of the whole batch: what a mean is taken over may depend on them.
        quantities: As in :func:`evaluate`.
        part: Where the samples stand in the batch.
        seed: Seeds the draws of the whole batch, of which the part takes its own.
        mc_samples: As in :func:`evaluate`.

    Returns:
        The part's share of the loss, its outputs, and states that are not results yet. Those of
        quantities that are no samples' own add up.

    Raises:
        ValueError: A quantity is unknown, asked for twice, or of the whole batch only.
        EngineError: As :func:`evaluate`.
    """
    asked = resolve(quantities, mc_samples)
    for quantity in asked.values():
        if quantity is not None and not quantity.divisible:
            raise ValueError(f"{type(quantity).__name__} is of the whole batch only")

    def draws(total: int, offset: int) -> Draws:
        return SeededDraws(seed, total, offset)

    return evaluate_with(model, loss, inputs, targets, asked, draws, part=part)


def merge_parts(
    parts: Sequence[Evaluation], quantities: Sequence[str | Quantity], mc_samples: int = 1
) -> Evaluation:
    """Puts the parts of a batch together, in the order of its samples, and makes the results.

    Args:
        parts: What :func:`evaluate_part` returned, with the same quantities.
        quantities: These quantities.
        mc_samples: As in :func:`evaluate`.
    """
    with torch.no_grad():
        return _merge(parts, resolve(quantities, mc_samples))


def part_loss(loss: nn.Module, outputs: Tensor, targets: Tensor, whole: Tensor) -> Tensor:
    """What some samples contribute to the loss of their batch; these parts add up to it.

    Args:
        loss: A loss module, reduced by ``mean`` or ``sum``.
        outputs: The model's outputs for the part.
        targets: The part's targets.
        whole: The targets of the whole batch.

    Raises:
        UnsupportedLossError: The loss has no curvature rule.
    """
    rule = _rule(loss)
    module, share = _of_part(rule, loss, outputs, targets, whole)
    return rule.value(module, outputs, targets) * share


def _of_part(
    rule: LossRule, loss: nn.Module, outputs: Tensor, targets: Tensor, whole: Tensor
) -> tuple[nn.Module, float | Tensor]:
    """The loss of a part, and the factor that makes it the part's share of the batch's."""
    if len(targets) == len(whole):
        return loss, 1.0
    module, own = rule.of_parts(loss), outputs.detach()
    lines = len(own) * len(whole) // len(targets)
    all_outputs = own[:1].expand(lines, *own.shape[1:])
    return module, rule.norm(module, own, targets) / rule.norm(loss, all_outputs, whole)


def evaluate_with(
    model: nn.Module,
    loss: nn.Module,
    inputs: Tensor,
    targets: Tensor,
    asked: Mapping[str, Quantity | None],
    draws: DrawsOf,
    chunk: int | None = None,
    split: share.Split | None = None,
    part: Part | None = None,
) -> Evaluation:
    """:func:`evaluate`, of quantities by name and with any source of random numbers.

    With a ``split``, what samples that would go back again contribute is left out of the result.
    With a ``part``, the result is that of :func:`evaluate_part`.
    """
    rule = _rule(loss)
    with context.own_passes(), nullcontext() if is_attached(model) else attached(model):
        if part is not None:
            batch = _Batch(model, loss, rule, inputs, targets, part)
            return _evaluate(batch, asked, draws, split)
        batches = _parts(model, loss, rule, inputs, targets, chunk)
        parts = [_evaluate(batch, asked, draws, split) for batch in batches]
    return _merge(parts, asked)


def _rule(loss: nn.Module) -> LossRule:
    rule = losses.find(loss)
    if rule is None:
        raise UnsupportedLossError(losses.refusal(loss))
    return rule


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
    chunk: int | None,
) -> "Iterator[_Batch]":
    """The batch part by part, each with its share of the whole batch's loss."""
    size = len(inputs) if chunk is None else chunk
    for start in range(0, len(inputs), size):
        own = inputs[start : start + size]
        yield _Batch(model, loss, rule, own, targets, Part(start, len(inputs)))


@dataclass(frozen=True)
class _Batch:
    """A part of a batch, which may be all of it.

    Attributes:
        inputs: Of the part.
        whole: The targets of the whole batch.
        part: Where the part stands.
    """

    model: nn.Module
    loss: nn.Module
    rule: LossRule
    inputs: Tensor
    whole: Tensor
    part: Part

    @cached_property
    def targets(self) -> Tensor:
        """The targets of the part."""
        return self.part.own(self.whole, len(self.inputs))


def _evaluate(
    batch: _Batch, asked: Mapping[str, Quantity | None], draws: DrawsOf, split: share.Split | None
) -> Evaluation:
    named = {name: p for name, p in batch.model.named_parameters() if p.requires_grad}
    with torch.enable_grad(), share.watched(batch.model) as steady:
        outputs = memory_format.run(batch.model, batch.inputs)
    with torch.enable_grad():
        loss, part = _of_part(batch.rule, batch.loss, outputs, batch.targets, batch.whole)
        value = batch.rule.value(loss, outputs, batch.targets) * part
    work = _Work(batch, loss, outputs, part, list(named.values()), steady.holds, split)
    if extensions := [q for q in asked.values() if q is not None]:
        work.begin(extensions, draws)
    with sent_back(value, convolved=memory_format.convolves(batch.model)):
        gradients = torch.autograd.grad(value, list(named.values()), allow_unused=True)
    work.end()
    found = work.found
    found[GRADIENT] = {
        p: torch.zeros_like(p) if g is None else g
        for p, g in zip(named.values(), gradients, strict=True)
    }
    return Evaluation(
        value.detach(),
        outputs.detach(),
        {name: {key: found[name][p] for key, p in named.items()} for name in asked},
    )


@dataclass
class _Work:
    """The extensions of one batch: what is done before its gradient is computed, and after.

    Attributes:
        loss: That of the batch, or of a part of one.
        part: By what it is multiplied.
        steady: Whether samples of the batch may go through the model again.
        found: The states by savefield; those made of the gradient are filled in as it is computed.
    """

    batch: _Batch
    loss: nn.Module
    outputs: Tensor
    part: float | Tensor
    parameters: Sequence[Tensor]
    steady: bool
    split: share.Split | None
    found: dict[str, dict[Tensor, Any]] = field(default_factory=dict)
    _first: list[GradientQuantity] = field(default_factory=list)
    _caught: FirstOrder | None = None
    _again: dict[str, share.Again] = field(default_factory=dict)

    def begin(self, extensions: Sequence[Quantity], draws: DrawsOf) -> None:
        """Computes what is made of the loss's curvature, and sets hooks for the rest."""
        batch, values, node = self.batch, self.outputs.detach(), self.outputs.grad_fn
        losses.check(batch.rule, self.loss, values, batch.targets)
        if node is None:
            raise NotRecordedError("the model's output does not depend on any trainable parameter")
        edge = GradientEdge(node, self.outputs.output_nr)
        graph = read(edge)
        way = plan(graph, edge, values)
        loss = LossAt(
            batch.rule, self.loss, values, batch.targets, self.part, way.layout, way.samples
        )
        absent = _absent(graph, way, self.parameters)
        with torch.no_grad():
            numbers = _draws(batch, self.outputs, draws)
            at = Pass(graph, way, edge, absent, loss=loss, draws=numbers)
            for quantity in extensions:
                states = self._compute(quantity, at)
                if isinstance(states, GradientQuantity):
                    self._first.append(states)
                    empty = (Rows((), way.samples, p.detach()) for p in absent)
                    states = {p: states.reduce(rows) for p, rows in zip(absent, empty, strict=True)}
                self.found[quantity.savefield] = states
        if self._first:
            self._caught = FirstOrder(self._first, self._done)
            self._caught.watch(graph, way)

    def end(self) -> None:
        """Runs when the gradient has been computed."""
        if self._caught is not None:
            self._caught.unfinished()
        with torch.no_grad():
            for savefield, again in self._again.items():
                share.add(self.found[savefield], again.square_sums())

    def _compute(self, quantity: Quantity, at: Pass) -> dict[Tensor, Any] | GradientQuantity:
        """The states of a quantity, or what makes them of the gradient."""
        shared = share.shared(at, quantity, self.batch.inputs) if self.steady else None
        if shared is not None:
            return self._hits(shared, at) or square_sums(at, [shared.column])
        states = quantity.compute(at)
        if states is None:
            assert isinstance(quantity, GradientQuantity)
            return quantity
        return states

    def _hits(self, shared: share.Shared, at: Pass) -> share.Hits | None:
        """What is made of the gradient for the samples where it is the column; None for too few."""
        if self.split is not None:
            self.split.shared = shared
            return share.Hits(shared) if self.split.way == "hits" else None
        chosen = share.misses(shared.weights, alone=shared.alone)
        if chosen is None:
            return None
        if len(chosen):
            own = share.picked(self.batch.inputs, shared.column, chosen)
            again = share.again(self.batch.model, *own)
            if not share.alike(again.outputs, at.loss.outputs, chosen):
                return None
            self._again[shared.quantity.savefield] = again
        return share.Hits(shared)

    def _done(self, parameter: Tensor, states: dict[str, Any]) -> None:
        for savefield, state in states.items():
            self.found[savefield][parameter] = state


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
    return draws(batch.part.total * lines, batch.part.start * lines)


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
