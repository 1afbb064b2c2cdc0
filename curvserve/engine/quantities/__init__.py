# ruff: noqa: F403, I001 # the imports are the registry, in the order of all tables
"""The quantities, and the registry of their names.

A new one is one file beside this one, and its line among the imports below.
"""

from inspect import signature

from curvserve.engine.quantities.base import *
from curvserve.engine.quantities.per_sample import *
from curvserve.engine.quantities.diagonal import *
from curvserve.engine.quantities.sqrt_ggn import *
from curvserve.engine.quantities.hessian import *
from curvserve.engine.quantities.hutchinson import *
from curvserve.engine.quantities.kronecker import *
from curvserve.engine.quantities.matrix_products import *
from curvserve.engine.quantities.pchmp import *
from curvserve.engine.quantities.hbp import *
from curvserve.engine.quantities import base

EXTENSIONS: tuple[type[base.Quantity], ...] = tuple(
    found
    for name, found in list(vars().items())
    if isinstance(found, type) and issubclass(found, base.Quantity) and name not in base.__all__
)

# By name: those that can be made without options, as HBP cannot.
QUANTITIES: dict[str, type[base.Quantity]] = {
    kind().savefield: kind
    for kind in EXTENSIONS
    if all(p.default is not p.empty for p in signature(kind).parameters.values())
}
