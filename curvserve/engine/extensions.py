# ruff: noqa: F403 # every quantity is an extension, by BackPACK's name
"""The extensions under BackPACK's names: what ``with backpack(...)`` takes."""

from curvserve.engine.quantities import *
from curvserve.engine.quantities import EXTENSIONS

__all__ = [kind.__name__ for kind in EXTENSIONS]
