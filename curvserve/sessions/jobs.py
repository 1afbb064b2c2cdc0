"""What a session can have computed: plain functions of a replica, a state and a batch.

None of them changes a state: a step returns the next one, and raises before there is one. Nothing
here knows HTTP, threads or event loops.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

import torch
from curvserve_client.errors import InvalidRule, NonFinite, OutOfMemory, UnknownQuantity
from curvserve_client.rules import Rule, Update, rule_options
from curvserve_client.types import CurvatureResult, EvaluateResult, StepResult
from torch import Tensor

from ..engine import Evaluation
from ..engine import evaluate as engine_evaluate
from ..engine.errors import EngineError, NonFiniteError
from ..models.batch import check_values
from .finite import check_finite
from .replica import Replica, seeded
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
    with _told_as_problems(), torch.no_grad():
        inputs, targets = _to_device(replica, batch)
        outputs = replica.bind(state).eval()(inputs)
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
    """Return quantities of a batch, in host memory; the draws come from the state's `draw_seed`.

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
    with _told_as_problems():
        found, metrics = _differentiate(replica, state, batch, quantities, mc_samples)
        tensors = {
            quantity: {name: tensor.cpu() for name, tensor in found.quantities[quantity].items()}
            for quantity in quantities
        }
    return CurvatureResult(
        loss=found.loss.item(),
        metrics=metrics,
        version=state.version,
        seed=state.draw_seed,
        samples=len(batch["inputs"]),
        tensors=tensors,
    )


def step(
    replica: Replica, state: SessionState, batch: Tensors, rule: Rule
) -> tuple[SessionState, StepResult]:
    """Return the state after one step of a rule, and what the step did.

    Args:
        replica: the model on its device.
        state: the version to step from.
        batch: `inputs` and `targets` in host memory, their layout checked.
        rule: how quantities become a step; for this step only.

    Raises:
        InvalidBatch: a value that is not finite or out of range.
        UnknownQuantity: the engine cannot compute a quantity of this model.
        InvalidRule: an option is too large for the parameters' dtype.
        NonFinite: loss, metric, gradient, curvature, new parameter, what the rule remembers, or the
            step norm is not finite.
        OutOfMemory: the device cannot hold the batch.
    """
    with _told_as_problems(), torch.no_grad():
        quantities = rule.quantities(state.rule_state)
        found, metrics = _differentiate(replica, state, batch, quantities, 1)
        buffers = replica.buffers()  # before the rule tries other parameters
        update = _update(rule, replica, state, batch, found)
        norm = _distance(state.parameters, update.parameters)
        check_finite({"step_norm": norm})
    after = state.stepped(update.parameters, buffers, update.state)
    return after, StepResult(
        loss=found.loss.item(),
        metrics=metrics,
        version=after.version,
        step_norm=norm.item(),
        samples=len(batch["inputs"]),
        update={name: float(value) for name, value in update.metrics.items()},
    )


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
    with _told_as_problems():
        check_finite(tensors)
        # in the module's order, and copied: the tensors look into the received body
        ordered = {name: tensors[name] for name in state.parameters}
        return state.loaded({name: _own(tensor, replica) for name, tensor in ordered.items()})


def _differentiate(
    replica: Replica, state: SessionState, batch: Tensors, quantities: Sequence[str], mc: int
) -> tuple[Evaluation, dict[str, float]]:
    inputs, targets = _to_device(replica, batch)
    network = replica.bind(state).train()
    # the global generators are seeded for what the network itself draws, dropout for one
    with seeded(state.draw_seed, replica.device), torch.enable_grad():
        found = engine_evaluate(
            network,
            replica.loss,
            inputs,
            targets,
            quantities,
            seed=state.draw_seed,
            mc_samples=mc,
        )
    check_finite({"loss": found.loss})
    for quantity in quantities:
        tensors = found.quantities[quantity]
        check_finite({f"{quantity}.{name}": tensor for name, tensor in tensors.items()})
    return found, _metrics(replica, found.outputs, targets)


def _to_device(replica: Replica, batch: Tensors) -> tuple[Tensor, Tensor]:
    model = replica.model
    check_values(model, batch)
    inputs = model.inputs.convert(_own(batch["inputs"], replica))
    return inputs, model.targets.convert(_own(batch["targets"], replica))


def _own(tensor: Tensor, replica: Replica) -> Tensor:
    # always a copy: torch aligns its own memory to 64 bytes, and libraries may give other bits
    # for the same numbers at another alignment
    return tensor.to(replica.device, copy=True)


def _metrics(replica: Replica, outputs: Tensor, targets: Tensor) -> dict[str, float]:
    values = {name: metric(outputs, targets) for name, metric in replica.model.metrics.items()}
    if values:
        check_finite({f"metrics.{name}": value for name, value in values.items()})
    return {name: value.item() for name, value in values.items()}


def _update(
    rule: Rule, replica: Replica, state: SessionState, batch: Tensors, found: Evaluation
) -> Update:
    """Return what the rule makes of the quantities, checked to be finite.

    Frozen parameters, which have no gradient, stay as they are.
    """
    _check_range(rule, found.quantities["grad"])

    def loss_at(parameters: Tensors) -> float:
        return _loss_at(replica, replace(state, parameters=parameters), batch)

    before = state.rule_state
    update = rule.update(
        state.parameters, found.quantities, before, loss=found.loss, loss_at=loss_at
    )
    check_finite({f"parameter.{name}": tensor for name, tensor in update.parameters.items()})
    remembered = {
        f"{slot}.{name}": tensor
        for slot, tensors in update.state.tensors.items()
        for name, tensor in tensors.items()
        if tensor is not before.tensors.get(slot, {}).get(name)
    }
    if remembered:
        check_finite(remembered)
    return update


def _loss_at(replica: Replica, state: SessionState, batch: Tensors) -> float:
    """Return the loss as a step computes it: in training mode, with what the network draws."""
    inputs, targets = _to_device(replica, batch)
    with seeded(state.draw_seed, replica.device):
        loss: Tensor = replica.loss(replica.bind(state).train()(inputs), targets)
    return loss.item()


def _check_range(rule: Rule, parameters: Tensors) -> None:
    """Refuse an option that is finite in float64 and infinite in the parameters' own dtype."""
    largest = min(torch.finfo(tensor.dtype).max for tensor in parameters.values())
    for option, value in rule_options(rule).items():
        if abs(value) > largest:
            raise InvalidRule(f"{option} is {value!r}", expected=f"{option}: at most {largest:g}")


def _distance(before: Tensors, after: Tensors) -> Tensor:
    """Return the Euclidean norm of the change over all parameters, in float64."""
    norms = [
        torch.linalg.vector_norm(after[name] - before[name], dtype=torch.float64) for name in before
    ]
    norm: Tensor = torch.linalg.vector_norm(torch.stack(norms))
    return norm


@contextmanager
def _told_as_problems() -> Iterator[None]:
    """Tell the engine's and torch's errors as problems that a caller can act on."""
    try:
        yield
    except NonFiniteError as error:
        raise NonFinite(str(error), tensor="outputs") from error
    except EngineError as error:
        raise UnknownQuantity(str(error)) from error
    except (torch.OutOfMemoryError, MemoryError) as error:
        raise OutOfMemory("the device has no memory left for this request") from error
