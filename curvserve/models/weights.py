"""Initial parameters from a safetensors file."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from curvserve_client.errors import MalformedBody
from curvserve_client.types import ParameterSpec
from curvserve_client.wire import decode
from torch import Tensor, nn

from .errors import ModelNotFound, ModelUnfit
from .model import Model

_SHOWN = 4
"""Differences that an error names."""


def with_weights(model: Model, file: Path) -> Model:
    """Return the model whose sessions begin with the tensors of a file instead of drawn ones.

    The file is read once, now, and kept in memory.

    Args:
        model: the recipe.
        file: safetensors, by the names of the network's `state_dict`: parameters and buffers.

    Raises:
        ModelUnfit: the file cannot be read, or a name, shape or dtype is another than the model's.
    """
    try:
        tensors, _ = decode(bytearray(file.read_bytes()))
    except (OSError, MalformedBody) as error:
        reason = getattr(error, "strerror", None) or error
        raise ModelUnfit(
            f"cannot read the weights of {model.name!r} in {file}: {reason}"
        ) from error

    def build() -> nn.Module:
        network = model.build()
        own = network.state_dict()
        if reason := _difference(own, tensors):
            raise ModelUnfit(f"the weights in {file} are not those of {model.name!r}: {reason}")
        with torch.no_grad():
            for name, tensor in tensors.items():
                own[name].copy_(tensor)
        return network

    return replace(model, build=build)


def all_with_weights(models: Sequence[Model], choices: Sequence[str]) -> list[Model]:
    """Return the models with the weights that an operator's words choose.

    Args:
        models: the recipes.
        choices: `MODEL=FILE` each; `FILE` where there is one model.

    Raises:
        ModelNotFound: no such model here, or it is not said which.
        ModelUnfit: as `with_weights`.
    """
    files: dict[str, Path] = {}
    names = [model.name for model in models]
    for choice in choices:
        name, equals, file = choice.partition("=")
        if name not in names or not equals:
            if len(models) > 1:
                known = ", ".join(names)
                raise ModelNotFound(f"weights {choice!r}: expected MODEL=FILE, MODEL of {known}")
            name, file = names[0], choice
        if name in files:
            raise ModelNotFound(f"the weights of {name!r} are given twice")
        files[name] = Path(file)
    return [with_weights(m, files[m.name]) if m.name in files else m for m in models]


def _difference(own: Mapping[str, Tensor], given: Mapping[str, Tensor]) -> str:
    """Return what is not as it should be, by name; nothing if all is."""
    held = {own[name].data_ptr() for name in given if name in own}
    # files keep one name of tensors that are tied
    missing = [name for name in own if name not in given and own[name].data_ptr() not in held]
    found = [f"no {name}" for name in missing] + [f"{n} unknown" for n in given if n not in own]
    for name, tensor in given.items():
        if name in own and ParameterSpec.of(tensor) != (spec := ParameterSpec.of(own[name])):
            was = ParameterSpec.of(tensor)
            found.append(
                f"{name} is {was.dtype} {list(was.shape)}, expected {spec.dtype} {list(spec.shape)}"
            )
        elif tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            found.append(f"{name} is not finite")
    more = f"; {len(found) - _SHOWN} more" if len(found) > _SHOWN else ""
    return "; ".join(found[:_SHOWN]) + more
