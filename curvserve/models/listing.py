"""What `curvserve models` says."""

from collections.abc import Iterator, Sequence

import torch

from .check import check
from .errors import ModelError
from .model import Model
from .registry import TORCHVISION, available, resolve
from .specification import SampleSpec
from .support import find_support


def listed() -> Iterator[str]:
    """Yield a line for each registered model."""
    for name in available():
        try:
            model = resolve(name)
        except ModelError as error:  # another package's
            yield f"{name}: {error}"
        else:
            yield f"{name}: {model.inputs.meaning} -> {model.targets.meaning}"
    yield f"{TORCHVISION}NAME: torchvision's classification models, for instance resnet18"


def described(references: Sequence[str]) -> Iterator[str]:
    """Check models on the CPU, and yield what each takes and has.

    Args:
        references: as `resolve` takes them.

    Raises:
        ModelNotFound: as `resolve`.
        ModelUnfit: a model does not work.
    """
    for reference in references:
        yield from _described(resolve(reference))


def _described(model: Model) -> Iterator[str]:
    with torch.random.fork_rng([]):
        network, loss = check(model)
        support = find_support(model, network, loss, torch.device("cpu"))
    count = sum(parameter.numel() for parameter in network.parameters())
    yield f"{model.name}: {count:,} parameters, {type(loss).__name__}, {', '.join(model.metrics)}"
    yield f"  inputs: {_told(model.inputs)}"
    yield f"  targets: {_told(model.targets)}"
    yield f"  quantities: {', '.join(support.quantities)}"
    if support.refused:
        yield f"  {support}"


def _told(spec: SampleSpec) -> str:
    return spec.expected() + (f": {spec.meaning}" if spec.meaning else "")
