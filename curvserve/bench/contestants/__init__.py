"""The contestants, in the order of the columns."""

from .base import Contestant, Found, Value
from .by_backpack import BackPACK, ChannelsLast
from .by_curvlinops import Curvlinops
from .by_engine import Compiled, Evaluate, Hooks
from .by_func import TorchFunc
from .by_loop import Loop
from .by_opacus import Opacus
from .gradient import Gradient

CONTESTANTS: dict[str, type[Contestant]] = {
    kind.name: kind
    for kind in (
        Gradient,
        Hooks,
        Evaluate,
        Compiled,
        BackPACK,
        ChannelsLast,
        TorchFunc,
        Opacus,
        Curvlinops,
    )
}

REFERENCES: tuple[type[Contestant], ...] = (BackPACK, Loop)
"""What the numbers are held against: the first that can do the case, and is not the same."""

__all__ = ["CONTESTANTS", "REFERENCES", "Contestant", "Found", "Value"]
