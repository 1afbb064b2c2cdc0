"""The models that can be served: a registry, and one file per built-in model."""

from .check import check
from .errors import ModelError, ModelNotFound, ModelUnfit
from .model import Model
from .registry import available, register, resolve, resolve_all
from .specification import SampleSpec
from .support import Support, find_support
from .weights import all_with_weights, with_weights

__all__ = [
    "Model",
    "ModelError",
    "ModelNotFound",
    "ModelUnfit",
    "SampleSpec",
    "Support",
    "all_with_weights",
    "available",
    "check",
    "find_support",
    "register",
    "resolve",
    "resolve_all",
    "with_weights",
]
