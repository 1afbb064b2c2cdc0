"""Time curvature against its peers: contestants in turns, each checked before it is timed.

`curvserve bench` runs this on a registered model; `make bench` runs it on the nets of the
performance page. It stands on the engine; the peers are imported by those contestants that need
them.
"""

from .case import QUANTITIES, Case, Task, case_of
from .checks import Checked, WrongNumbers, check, default_dtype, distance
from .contestants import CONTESTANTS, Contestant
from .draws import drawing
from .report import about, aligned, number, say, table
from .rows import Row, compare, timed
from .tables import INSTALL, lines, missing, run, to_json
from .timing import Timed, measure

__all__ = [
    "CONTESTANTS",
    "INSTALL",
    "QUANTITIES",
    "Case",
    "Checked",
    "Contestant",
    "Row",
    "Task",
    "Timed",
    "WrongNumbers",
    "about",
    "aligned",
    "case_of",
    "check",
    "compare",
    "default_dtype",
    "distance",
    "drawing",
    "lines",
    "measure",
    "missing",
    "number",
    "run",
    "say",
    "table",
    "timed",
    "to_json",
]
