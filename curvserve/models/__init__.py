"""The models that can be served: a registry, and one file per built-in model."""

from .registry import Model, ModelNotFound, available, register, resolve
from .specification import SampleSpec

__all__ = ["Model", "ModelNotFound", "SampleSpec", "available", "register", "resolve"]
