"""What a session can have computed: plain functions of a replica, a state and a batch.

None of them changes a state: a step returns the next one, and raises before there is one. Nothing
here knows HTTP, threads or event loops.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from curvserve_client.errors import NonFinite, OutOfMemory, UnknownQuantity
from curvserve_client.types import CurvatureResult, EvaluateResult
from torch import Tensor

from ..engine import Evaluation
from ..engine.errors import EngineError, NonFiniteError
from ..engine.memory_format import run
from ..models import Support, find_support
from ..models.batch import check_values
from .finite import check_finite
from .replica import Replica
from .seeding import seeded
from .state import SessionState, Tensors


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
    with told_as_problems(), torch.no_grad():
        inputs, targets = _to_device(replica, batch)
        outputs = run(replica.bind(state, evaluating=True), inputs)
        loss = replica.loss(outputs, targets)
        check_finite({"loss": loss})
        metrics = _metrics(replica, outputs, targets)
    return EvaluateResult(loss.item(), metrics, state.version, len(inputs))


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
        found, metrics = differentiate(replica, state, batch, quantities, mc_samples)
        tensors = {
            quantity: {name: tensor.cpu() for name, tensor in found.quantities[quantity].items()}
            for quantity in quantities
        }
    return CurvatureResult(
        loss=found.loss.item(),
        metrics=metrics,
        version=state.version,
        seed=state.draw_seed(),
        samples=len(batch["inputs"]),
        tensors=tensors,
    )


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
) -> tuple[Evaluation, dict[str, float]]:
    """Return quantities of a batch, on the device, and metrics.

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
    inputs, targets = _to_device(replica, batch)
    replica.bind(state)
    # the global generators are seeded for what the network itself draws, dropout for one
    seed = state.draw_seed(part)
    with seeded(seed, replica.drawing), torch.enable_grad():
        found = replica.evaluator(inputs, targets, quantities, seed=seed, mc_samples=mc_samples)
    check_finite({"loss": found.loss})
    for quantity in quantities:
        check_finite(named(quantity, found.quantities[quantity]))
    return found, _metrics(replica, found.outputs, targets)


def loss_at(replica: Replica, state: SessionState, parameters: Tensors, batch: Tensors) -> float:
    """Return the loss of a batch at other parameters, in the mode and with the draws of a step."""
    inputs, targets = _to_device(replica, batch)
    network = replica.bind(replace(state, parameters=parameters))
    with seeded(state.draw_seed(), replica.drawing):
        return float(replica.loss(run(network, inputs), targets))


def named(group: str, tensors: Mapping[str, Any]) -> dict[str, Any]:
    """Return `group.name` -> tensor, or list of Kronecker factors."""
    return {f"{group}.{name}": tensor for name, tensor in tensors.items()}


def _to_device(replica: Replica, batch: Tensors) -> tuple[Tensor, Tensor]:
    model = replica.model
    check_values(model, batch)
    inputs = model.inputs.convert(_aligned(batch["inputs"], replica.device))
    return inputs, model.targets.convert(_aligned(batch["targets"], replica.device))


def _aligned(tensor: Tensor, device: torch.device) -> Tensor:
    # always a copy: torch aligns its own memory to 64 bytes, and libraries may give other bits
    # for the same numbers at another alignment
    return tensor.to(device, copy=True)


def _metrics(replica: Replica, outputs: Tensor, targets: Tensor) -> dict[str, float]:
    values = {name: metric(outputs, targets) for name, metric in replica.model.metrics.items()}
    if values:
        check_finite({f"metrics.{name}": value for name, value in values.items()})
    return {name: value.item() for name, value in values.items()}


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
