"""Whether a model works: one tiny batch goes through it before a server listens."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from ..engine import losses
from .dry_run import SAMPLES, draw, in_a_line, made, outputs_of
from .errors import ModelUnfit
from .model import NAME, NAME_EXPECTED, Model


def check(model: Model, device: torch.device | str = "cpu") -> tuple[nn.Module, nn.Module]:
    """Build a model and compute outputs, loss and metrics of two made-up samples.

    Torch's global generators are left as they were.

    Args:
        model: the recipe.
        device: where.

    Returns:
        The network and the loss, on the device.

    Raises:
        ModelUnfit: its name cannot be a session's; it cannot be built; a batch that its
            specification allows has no finite outputs, loss or metrics.
    """
    if not NAME.fullmatch(model.name):
        raise ModelUnfit(f"{model.name!r} cannot be a model's name; expected {NAME_EXPECTED}")
    device = torch.device(device)
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(0)
        network = made(model.name, "build", model.build).to(device)
        loss = made(model.name, "loss", model.loss).to(device)
        if losses.find(loss) is None:
            raise ModelUnfit(f"model {model.name!r}: {losses.refusal(loss)}")
        inputs, targets = batch(model, device)
        outputs = outputs_of(model.name, network, inputs)
        _check_numbers(model, loss, outputs, targets)
    return network, loss


def batch(model: Model, device: torch.device) -> tuple[Tensor, Tensor]:
    """Return made-up inputs and targets that a model's specifications allow, on a device."""
    inputs, targets = draw(model.inputs, SAMPLES), draw(model.targets, SAMPLES, seed=1)
    return inputs.to(device), targets.to(device)


def _check_numbers(model: Model, loss: nn.Module, outputs: Tensor, targets: Tensor) -> None:
    """Refuse outputs without a gradient, and a loss or a metric that does not take them."""
    said = f"model {model.name!r}: outputs {list(outputs.shape)} with targets {list(targets.shape)}"
    if not outputs.requires_grad:
        raise ModelUnfit(f"{said}: the outputs depend on no parameter that requires a gradient")
    functions: dict[str, Callable[[Tensor, Tensor], Tensor]] = {"the loss": loss, **model.metrics}
    for name, function in functions.items():
        try:
            value = function(outputs, targets)
        except Exception as error:  # whatever an author's code raises
            raise ModelUnfit(f"{said}: {name} fails: {in_a_line(error)}") from error
        if not isinstance(value, Tensor) or value.dim() or not bool(torch.isfinite(value)):
            raise ModelUnfit(f"{said}: {name} gives {value}, expected a finite 0-dim tensor")
