"""Kernels of our own, in C, for what torch has no operation for that would not write too much.

They are compiled when the package is installed, wherever there is a C compiler. Where there was
none, :func:`instructions` is None and everything is computed by torch, as before. No header of
torch goes into them: tensors are handed over as addresses, and threads are those of the OpenMP
library that torch itself uses.
"""

from curvserve.engine.native.binding import bind_team
from curvserve.engine.native.library import admits, instructions
from curvserve.engine.native.passes import are_finite, distance, divided, fit
from curvserve.engine.native.sparse import Image, pays, row_sum, spread
from curvserve.engine.native.squares import square_sum

__all__ = [
    "Image",
    "admits",
    "are_finite",
    "bind_team",
    "distance",
    "divided",
    "fit",
    "instructions",
    "pays",
    "row_sum",
    "spread",
    "square_sum",
]
