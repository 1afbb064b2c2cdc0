"""What a step tells, to whatever keeps such numbers: TensorBoard, Weights & Biases, a list."""

from collections.abc import Callable, Mapping
from typing import Any, Protocol, runtime_checkable

from .types import StepResult


@runtime_checkable
class ScalarWriter(Protocol):
    """What `torch.utils.tensorboard.SummaryWriter` has."""

    def add_scalar(self, tag: str, scalar_value: float, global_step: int) -> Any:
        """Keep one number of one step."""


@runtime_checkable
class Logger(Protocol):
    """What a run of Weights & Biases has."""

    def log(self, data: Mapping[str, float], step: int) -> Any:
        """Keep the numbers of one step."""


def scalars(result: StepResult) -> dict[str, float]:
    """Return loss, metrics, step norm and what the rule told of a step, by name."""
    return {
        "loss": result.loss,
        **result.metrics,
        "step_norm": result.step_norm,
        **{f"update/{name}": value for name, value in result.update.items()},
    }


def recorder(writer: ScalarWriter | Logger, prefix: str) -> Callable[[StepResult], None]:
    """Return what hands each step's numbers to a writer, with the version as the step.

    Args:
        writer: has `add_scalar(tag, value, step)`, or `log(numbers, step=...)`.
        prefix: put before every name.

    Raises:
        TypeError: it has neither.
    """
    if isinstance(writer, ScalarWriter):

        def add(result: StepResult) -> None:
            for name, value in scalars(result).items():
                writer.add_scalar(prefix + name, value, result.version)

        return add
    if isinstance(writer, Logger):

        def log(result: StepResult) -> None:
            named = {prefix + name: value for name, value in scalars(result).items()}
            writer.log(named, step=result.version)

        return log
    raise TypeError(f"a {type(writer).__name__} has neither add_scalar nor log")
