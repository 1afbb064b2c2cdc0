"""Models by name: where recipes are found."""

import importlib
import pkgutil
from collections.abc import Callable, Iterable
from importlib.metadata import EntryPoint, entry_points

from .dry_run import in_a_line
from .errors import ModelError, ModelNotFound, ModelUnfit
from .model import Model

ENTRY_POINTS = "curvserve.models"
"""The group of entry points by which an installed package names its models."""

TORCHVISION = "torchvision:"

Factory = Callable[[], Model]

_FACTORIES: dict[str, Factory] = {}


def register(factory: Factory) -> Factory:
    """Make the model that a function returns known under the function's name (a decorator).

    The function is called when the model is looked up, not before.

    Args:
        factory: takes nothing and returns a `Model` of the function's own name.
    """
    _FACTORIES[factory.__name__] = factory
    return factory


def available() -> list[str]:
    """Return the names of all registered models, sorted; none of other packages is imported."""
    _import_built_in()
    return sorted({*_FACTORIES, *(point.name for point in _installed())})


def resolve(reference: str) -> Model:
    """Return the model that an operator names on the command line; never given a client's text.

    Args:
        reference: a registered name; `torchvision:NAME` with options; or
            `package.module:attribute`, where the attribute is a `Model` or a function without
            arguments that returns one.

    Raises:
        ModelNotFound: nothing of that name; the module cannot be imported; no model there.
        ModelUnfit: its factory fails, or its specification cannot be inferred.
    """
    if reference.startswith(TORCHVISION):
        from .torchvision_zoo import model_of  # which loads torchvision

        return model_of(reference.removeprefix(TORCHVISION))
    if ":" in reference:
        return _from_module(reference)
    _import_built_in()
    points = [point for point in _installed() if point.name == reference]
    if len(points) + (reference in _FACTORIES) > 1:
        origins = [*map(_origin, points), *["this process"] * (reference in _FACTORIES)]
        raise ModelNotFound(f"several models are called {reference!r}: of {', '.join(origins)}")
    if points:
        return _from_package(points[0])
    if reference not in _FACTORIES:
        known = ", ".join(available())
        others = f"others are given as package.module:attribute or {TORCHVISION}NAME"
        raise ModelNotFound(f"no model is called {reference!r}; known: {known}; {others}")
    return _called(reference, _FACTORIES[reference])


def resolve_all(references: Iterable[str]) -> list[Model]:
    """Return the models of several references, in their order.

    Raises:
        ModelNotFound: as `resolve`, or two have the same name.
        ModelUnfit: as `resolve`.
    """
    found: dict[str, str] = {}
    models = []
    for reference in references:
        model = resolve(reference)
        if model.name in found:
            both = f"{found[model.name]} and {reference}"
            raise ModelNotFound(f"two models are called {model.name!r}: {both}; rename one")
        found[model.name] = reference
        models.append(model)
    return models


def _import_built_in() -> None:
    """Import every file beside this one, so that a new model is one new file."""
    package = importlib.import_module(__package__)
    for module in pkgutil.iter_modules(package.__path__):
        importlib.import_module(f"{__package__}.{module.name}")


def _installed() -> list[EntryPoint]:
    return list(entry_points(group=ENTRY_POINTS))


def _origin(point: EntryPoint) -> str:
    return point.dist.name if point.dist else point.value


def _from_package(point: EntryPoint) -> Model:
    model = _from_module(point.value)
    if model.name != point.name:
        said = f"{_origin(point)} registers {point.name!r}, whose model is called {model.name!r}"
        raise ModelNotFound(said)
    return model


def _from_module(reference: str) -> Model:
    module_name, _, attribute = reference.partition(":")
    try:
        found = getattr(importlib.import_module(module_name), attribute)
    except Exception as error:  # a module can raise anything while it is imported
        raise ModelNotFound(f"{reference!r} cannot be imported: {in_a_line(error)}") from error
    model = _called(reference, found) if callable(found) else found
    if not isinstance(model, Model):
        raise ModelNotFound(f"{reference!r} is a {type(model).__name__}, not a curvserve Model")
    return model


def _called(reference: str, factory: Factory) -> Model:
    try:
        return factory()
    except ModelError:
        raise
    except Exception as error:  # whatever an author's code raises
        raise ModelUnfit(f"the factory of {reference!r} failed: {in_a_line(error)}") from error
