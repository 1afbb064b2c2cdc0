"""torchvision's classification models by `torchvision:NAME`.

Batch norms are fixed (`norms.fixed`); dropout and stochastic depth stay in training mode. Nothing
is ever downloaded: pretrained weights are given as a file.
"""

from collections.abc import Mapping
from functools import partial
from typing import Any

from torch import nn

from .errors import ModelNotFound
from .images import class_of, colour_image
from .metrics import accuracy
from .model import Model
from .norms import fixed

# torchvision is imported in functions: it takes a second

OPTIONS = "size=PIXELS, classes=COUNT, name=NAME"

_MAX_BATCH = 256

_WITHOUT_AUXILIARY_HEADS = {"aux_logits": False, "init_weights": True}

_OWN: Mapping[str, Mapping[str, Any]] = {
    "googlenet": _WITHOUT_AUXILIARY_HEADS,
    "inception_v3": _WITHOUT_AUXILIARY_HEADS,
}


def model_of(text: str) -> Model:
    """Return the model that follows `torchvision:`.

    Args:
        text: `NAME` as torchvision has it, then options, each after a comma: `size`, pixels a side
            (what its weights were trained on), `classes` (1000), `name`, what clients call it
            (`NAME`).

    Raises:
        ModelNotFound: torchvision has no such classification model, or an option is unknown.
    """
    from torchvision import models  # type: ignore[import-untyped]  # it has none

    name, *options = text.split(",")
    if name not in models.list_models(module=models):
        raise _not_found(name, models.list_models())
    chosen = _options(text, options)
    usual = models.get_model_weights(name).DEFAULT.transforms()
    size = _number(text, chosen, "size", usual.crop_size[0])
    classes = _number(text, chosen, "classes", 1000)
    return Model(
        name=chosen.get("name", name),
        build=partial(network, name, size, classes),
        loss=nn.CrossEntropyLoss,
        inputs=colour_image(size, tuple(usual.mean), tuple(usual.std)),
        targets=class_of(classes, "the class"),
        metrics={"accuracy": accuracy},
        max_batch=_MAX_BATCH,
    )


def network(name: str, size: int, classes: int) -> nn.Module:
    """Return a network of the zoo, freshly drawn: [N, 3, size, size] -> [N, classes] logits.

    Args:
        name: as torchvision has it.
        size: pixels a side.
        classes: units of its head.
    """
    from torchvision import models

    own = dict(_OWN.get(name, {}))
    if name.startswith("vit_"):
        own["image_size"] = size
    if name.startswith("maxvit_"):
        own["input_size"] = (size, size)
    return fixed(models.get_model(name, weights=None, num_classes=classes, **own))


def _not_found(name: str, others: list[str]) -> ModelNotFound:
    if name in others:
        return ModelNotFound(
            f"torchvision's {name} is no classification model; only those are served"
        )
    return ModelNotFound(
        f"torchvision has no model {name!r}; its own names are expected: resnet18, ..."
    )


def _options(text: str, given: list[str]) -> dict[str, str]:
    pairs = [option.partition("=") for option in given]
    for option, (key, _, value) in zip(given, pairs, strict=True):
        if key not in ("size", "classes", "name") or not value:
            raise ModelNotFound(
                f"torchvision:{text}: unknown option {option!r}; there are {OPTIONS}"
            )
    return {key: value for key, _, value in pairs}


def _number(text: str, options: Mapping[str, str], key: str, default: int) -> int:
    value = options.get(key, str(default))
    if not value.isdecimal() or not int(value):
        raise ModelNotFound(f"torchvision:{text}: {key} is {value!r}, expected a positive number")
    return int(value)
