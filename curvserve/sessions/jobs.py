"""What a session can have computed: plain functions of a replica, a state and a batch.

None of them changes a state: a step returns the next one, and raises before there is one. Nothing
here knows HTTP, threads or event loops.
"""

from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from curvserve_client.errors import NonFinite, OutOfMemory, UnknownQuantity
from curvserve_client.rules import Quantities
from curvserve_client.types import CurvatureResult, EvaluateResult
from torch import Tensor
from torch.utils._pytree import tree_map_only

from ..engine import Evaluation, Part, merge_parts, part_loss
from ..engine.errors import EngineError, NonFiniteError
from ..engine.memory_format import run
from ..engine.quantities import QUANTITIES
from ..models import Support, find_support
from ..models.batch import check_values
from .finite import check_finite
from .replica import Replica
from .seeding import seeded
from .slices import Slices
from .state import SessionState, Tensors
from .team import span


class Found(NamedTuple):
    """What a batch, or a part of one, gave.

    Attributes:
        loss: the loss, or a part's share of it; 0-dimensional.
        quantities: quantity -> parameter name -> result, or a part's state.
        metrics: name -> value, or what a part contributes to the mean over the samples.
    """

    loss: Tensor
    quantities: dict[str, dict[str, Any]]
    metrics: Mapping[str, Tensor]

    def told(self) -> dict[str, float]:
        """Return the metrics as numbers."""
        return {name: value.item() for name, value in self.metrics.items()}


def evaluate(replica: Replica, state: SessionState, batch: Tensors) -> EvaluateResult:
    """Return loss and metrics of a batch in evaluation mode.

    Args:
        replica: the model on its device.
        state: the version to evaluate.
        batch: `inputs` and `targets` in host memory, their layout checked.

    Raises:
        InvalidBatch: a value that is not finite or out of range.
        NonFinite: the loss or a metric is not finite.
        OutOfMemory: the device cannot hold the batch.
    """
    samples = len(batch["inputs"])

    def part(own: range) -> Found:
        taken = _taken(replica, batch, own)
        outputs = run(replica.bind(state, evaluating=True), taken.inputs)
        return Found(_loss(replica, outputs, taken), {}, _metrics(replica, outputs, taken))

    with told_as_problems(), torch.no_grad():
        check_values(replica.model, batch)
        found = replica.together("evaluate", samples, part)
        _check_found(found)
        return EvaluateResult(found.loss.item(), found.told(), state.version, samples)


def curvature(
    replica: Replica,
    state: SessionState,
    batch: Tensors,
    quantities: Sequence[str],
    mc_samples: int,
) -> CurvatureResult:
    """Return quantities of a batch, in host memory; the draws come from the state's `draw_seed()`.

    Args:
        replica: the model on its device.
        state: the version to differentiate at.
        batch: `inputs` and `targets` in host memory, their layout checked.
        quantities: names that the engine knows.
        mc_samples: draws per sample.

    Raises:
        InvalidBatch: a value that is not finite or out of range.
        UnknownQuantity: the engine cannot compute a quantity of this model.
        NonFinite: the loss, a metric or a quantity is not finite.
        OutOfMemory: the device cannot hold the batch.
    """
    with told_as_problems():
        found = differentiate(replica, state, batch, quantities, mc_samples)
        return _curvature(state, found, len(batch["inputs"]))


def is_divisible(quantities: Sequence[str]) -> bool:
    """Tell whether parts of a batch can be computed apart, whichever of these are asked for."""
    return all(name not in QUANTITIES or QUANTITIES[name].divisible for name in quantities)


def curvature_part(
    replica: Replica,
    state: SessionState,
    batch: Tensors,
    quantities: Sequence[str],
    mc_samples: int,
    own: range,
) -> Found:
    """Return what some samples of a batch contribute to its quantities, in host memory.

    Args:
        replica: the model on its device.
        state: the version to differentiate at.
        batch: `inputs` and `targets` of all samples in host memory, their layout checked.
        quantities: names that the engine knows.
        mc_samples: draws per sample.
        own: the samples, consecutive ones.

    Raises:
        ProblemError: as `curvature`.
    """
    with told_as_problems():
        check_values(replica.model, batch)
        found = _found(replica, state, batch, quantities, mc_samples, state.draw_seed(), own)
        on_host: Found = tree_map_only(Tensor, Tensor.cpu, found)
        return on_host


def curvature_of_parts(
    state: SessionState,
    parts: Sequence[Found],
    samples: int,
    quantities: Sequence[str],
    mc_samples: int,
) -> CurvatureResult:
    """Return what `curvature` does of a batch, of which parts are there.

    Args:
        state: the version that was differentiated at.
        parts: what `curvature_part` returned, in the order of the samples.
        samples: how many samples there were.
        quantities: names that the engine knows.
        mc_samples: draws per sample.

    Raises:
        NonFinite: the loss, a metric or a quantity is not finite.
    """
    evaluations = [Evaluation(part.loss, part.loss[None], part.quantities) for part in parts]
    whole = merge_parts(evaluations, quantities, mc_samples)
    metrics = {
        name: torch.stack([part.metrics[name] for part in parts]).sum(0)
        for name in parts[0].metrics
    }
    found = Found(whole.loss, whole.quantities, metrics)
    _check_found(found)
    return _curvature(state, found, samples)


def support(replica: Replica) -> Support:
    """Return which quantities a model has."""
    with seeded(0, replica.drawing), torch.enable_grad():
        return find_support(replica.model, replica.unbound(), replica.loss, replica.device)


def load(replica: Replica, state: SessionState, tensors: Tensors) -> SessionState:
    """Return the state with its parameters replaced.

    Args:
        replica: the model on its device.
        state: the state before.
        tensors: parameter name -> tensor in host memory, their layout checked.

    Raises:
        NonFinite: a value is not finite.
        OutOfMemory: the device cannot hold them.
    """
    with told_as_problems():
        check_finite(tensors)
        # in the module's order, and copied: the tensors look into the received body
        ordered = {name: tensors[name] for name in state.parameters}
        own = {name: _aligned(tensor, replica.device) for name, tensor in ordered.items()}
        return state.loaded(own)


def adopt(state: SessionState, device: torch.device) -> SessionState:
    """Return a state whose tensors look into anything as one of tensors of its own on a device."""
    return state.of(
        lambda tensors: {name: _aligned(tensor, device) for name, tensor in tensors.items()}
    )


def host(tensors: Tensors) -> dict[str, Tensor]:
    """Return tensors in host memory."""
    return {name: tensor.cpu() for name, tensor in tensors.items()}


def differentiate(
    replica: Replica,
    state: SessionState,
    batch: Tensors,
    quantities: Sequence[str],
    mc_samples: int = 1,
    part: int = 0,
) -> Found:
    """Return loss, quantities and metrics of a batch, on the device.

    A worker that keeps slices gets its own of each quantity, which are still to be checked.

    Args:
        replica: the model on its device.
        state: the version to differentiate at.
        batch: `inputs` and `targets` in host memory, their layout checked.
        quantities: names that the engine knows.
        mc_samples: draws per sample.
        part: how many batches of the same step came before; each has draws of its own.

    Raises:
        ProblemError: as `curvature`.
    """
    check_values(replica.model, batch)
    seed = state.draw_seed(part)

    def compute(own: range) -> Found:
        return _found(replica, state, batch, quantities, mc_samples, seed, own)

    what = "differentiate", tuple(quantities), mc_samples
    if replica.slices is not None:
        return _found_slices(replica.slices, what, len(batch["inputs"]), compute)
    found = replica.together(what, len(batch["inputs"]), compute)
    if replica.team is not None:
        whole = Evaluation(found.loss, found.loss, found.quantities)
        merged = merge_parts([whole], quantities, mc_samples)
        found = found._replace(quantities=merged.quantities)
    _check_found(found)
    return found


def loss_at(replica: Replica, state: SessionState, parameters: Tensors, batch: Tensors) -> float:
    """Return the loss of a batch at other parameters, in the mode and with the draws of a step."""

    def part(own: range) -> Tensor:
        taken = _taken(replica, batch, own)
        network = replica.bind(replace(state, parameters=parameters))
        with seeded(state.draw_seed(), replica.drawing):
            return _loss(replica, run(network, taken.inputs), taken)

    return float(replica.together("loss_at", len(batch["inputs"]), part))


def named(group: str, tensors: Mapping[str, Any]) -> dict[str, Any]:
    """Return `group.name` -> tensor, or list of Kronecker factors."""
    return {f"{group}.{name}": tensor for name, tensor in tensors.items()}


@dataclass(frozen=True)
class _Taken:
    """Some samples of a batch, on the device.

    Attributes:
        inputs: theirs.
        targets: theirs.
        whole: the targets of the whole batch.
        part: where they stand in it; None for all of it.
        share: how much of it they are.
    """

    inputs: Tensor
    targets: Tensor
    whole: Tensor
    part: Part | None
    share: float


def _taken(replica: Replica, batch: Tensors, own: range) -> _Taken:
    model, samples = replica.model, len(batch["inputs"])
    mine = batch["inputs"][own.start : own.stop]
    inputs = model.inputs.convert(_aligned(mine, replica.device))
    whole = model.targets.convert(_aligned(batch["targets"], replica.device))
    if len(own) == samples:
        return _Taken(inputs, whole, whole, None if replica.team is None else Part(0, samples), 1.0)
    part = Part(own.start, samples)
    return _Taken(inputs, part.own(whole, len(own)), whole, part, len(own) / samples)


def _found(
    replica: Replica,
    state: SessionState,
    batch: Tensors,
    quantities: Sequence[str],
    mc_samples: int,
    seed: int,
    own: range,
) -> Found:
    taken = _taken(replica, batch, own)
    replica.bind(state)
    # the global generators are seeded for what the network itself draws, dropout for one
    with seeded(seed, replica.drawing), torch.enable_grad():
        found = replica.evaluator(
            taken.inputs,
            taken.whole,
            quantities,
            seed=seed,
            mc_samples=mc_samples,
            part=taken.part,
        )
    return Found(found.loss, found.quantities, _metrics(replica, found.outputs, taken))


def _found_slices(
    slices: Slices, what: Hashable, samples: int, compute: Callable[[range], Found]
) -> Found:
    own = span(samples, slices.team.rank, slices.team.workers)

    def part() -> tuple[Any, Quantities]:
        found = compute(own)
        return (found.loss, found.metrics), found.quantities

    (loss, metrics), quantities = slices.differentiated(what, part if own else None)
    _check_found(Found(loss, {}, metrics))
    return Found(loss, quantities, metrics)


def _check_found(found: Found) -> None:
    check_finite({"loss": found.loss})
    for quantity, tensors in found.quantities.items():
        check_finite(named(quantity, tensors))
    if found.metrics:
        check_finite(named("metrics", found.metrics))


def _curvature(state: SessionState, found: Found, samples: int) -> CurvatureResult:
    return CurvatureResult(
        loss=found.loss.item(),
        metrics=found.told(),
        version=state.version,
        seed=state.draw_seed(),
        samples=samples,
        tensors={quantity: host(tensors) for quantity, tensors in found.quantities.items()},
    )


def _aligned(tensor: Tensor, device: torch.device) -> Tensor:
    # always a copy: torch aligns its own memory to 64 bytes, and libraries may give other bits
    # for the same numbers at another alignment
    return tensor.to(device, copy=True)


def _loss(replica: Replica, outputs: Tensor, taken: _Taken) -> Tensor:
    return part_loss(replica.loss, outputs, taken.targets, taken.whole)


def _metrics(replica: Replica, outputs: Tensor, taken: _Taken) -> dict[str, Tensor]:
    values = {
        name: metric(outputs, taken.targets) for name, metric in replica.model.metrics.items()
    }
    return values if taken.share == 1 else {k: value * taken.share for k, value in values.items()}


@contextmanager
def told_as_problems() -> Iterator[None]:
    """Tell the engine's and torch's errors as problems that a caller can act on."""
    try:
        yield
    except NonFiniteError as error:
        raise NonFinite(str(error), tensor="outputs") from error
    except EngineError as error:
        raise UnknownQuantity(str(error)) from error
    except (RuntimeError, MemoryError) as error:
        if not _is_out_of_memory(error):
            raise
        raise OutOfMemory("the device has no memory left for this request") from error


def _is_out_of_memory(error: Exception) -> bool:
    # torch has a type for what a GPU lacks only; its libraries and its CPU tell it in words
    told = isinstance(error, torch.OutOfMemoryError | MemoryError)
    return told or any(words in str(error) for words in ("can't allocate memory", "_ALLOC_FAILED"))
