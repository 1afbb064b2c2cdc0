"""Models by name: the recipe of a model, and where recipes are found."""

import importlib
import pkgutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from torch import Tensor, nn

from .specification import SampleSpec

Factory = Callable[[], "Model"]
Metric = Callable[[Tensor, Tensor], Tensor]

_FACTORIES: dict[str, Factory] = {}


@dataclass(frozen=True)
class Model:
    """The recipe of a model that can be served; nothing is built until a server asks for it.

    Attributes:
        name: what clients call it.
        build: returns the network with freshly drawn parameters.
        loss: returns the loss module, called with (outputs, targets).
        inputs: what one sample of the inputs must be.
        targets: what one sample of the targets must be.
        metrics: metric name -> function of (outputs, targets) that returns a 0-dim tensor.
        max_batch: the largest number of samples in one batch.
    """

    name: str
    build: Callable[[], nn.Module]
    loss: Callable[[], nn.Module]
    inputs: SampleSpec
    targets: SampleSpec
    metrics: Mapping[str, Metric] = field(default_factory=dict)
    max_batch: int = 4096


class ModelNotFound(LookupError):
    """No model answers to a name or a `package.module:attribute` reference; the text says why."""


def register(factory: Factory) -> Factory:
    """Make the model that a function returns known under the function's name (a decorator).

    The function is called when the model is looked up, not before.

    Args:
        factory: takes nothing and returns a `Model` of the function's own name.
    """
    _FACTORIES[factory.__name__] = factory
    return factory


def available() -> list[str]:
    """Return the names of all registered models, sorted."""
    _import_built_in()
    return sorted(_FACTORIES)


def resolve(reference: str) -> Model:
    """Return the model that an operator names on the command line; never given a client's text.

    Args:
        reference: a registered name, or `package.module:attribute`, where the attribute is a
            `Model` or a function without arguments that returns one.

    Raises:
        ModelNotFound: nothing of that name; the module cannot be imported; no model there.
    """
    if ":" in reference:
        return _from_module(reference)
    _import_built_in()
    if reference not in _FACTORIES:
        known = ", ".join(available())
        others = "others are given as package.module:attribute"
        raise ModelNotFound(f"no model is called {reference!r}; known: {known}; {others}")
    return _FACTORIES[reference]()


def _import_built_in() -> None:
    """Import every file beside this one, so that a new model is one new file."""
    package = importlib.import_module(__package__)
    for module in pkgutil.iter_modules(package.__path__):
        importlib.import_module(f"{__package__}.{module.name}")


def _from_module(reference: str) -> Model:
    module_name, _, attribute = reference.partition(":")
    try:
        found = getattr(importlib.import_module(module_name), attribute)
    except (ImportError, AttributeError, ValueError) as error:
        raise ModelNotFound(f"{reference!r} cannot be imported: {error}") from error
    model = found() if callable(found) else found
    if not isinstance(model, Model):
        raise ModelNotFound(f"{reference!r} is a {type(model).__name__}, not a curvserve Model")
    return model
