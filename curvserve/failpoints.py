"""Places where a crash test has the process kill itself.

`CURVSERVE_FAILPOINT=before_commit` ends the process by SIGKILL when it first gets there,
`CURVSERVE_FAILPOINT=before_commit:3` when it gets there the third time.
"""

import os
import signal
from collections.abc import Mapping

VARIABLE = "CURVSERVE_FAILPOINT"

NAMES = (
    "before_compute",
    "after_compute",
    "before_segment_sync",
    "after_segment_sync",
    "before_commit",
    "after_commit",
    "before_swap",
    "after_swap",
    "mid_answer",
    "mid_snapshot",
    "before_snapshot_rename",
    "after_snapshot_rename",
)
"""Every place, in the order in which a step and then a snapshot come by them."""


class UnknownFailpoint(ValueError):
    """The environment names no such place; the text says which there are."""


_left: dict[str, int] = {}
"""The armed place -> how often it may still be reached; empty where nothing is armed."""


def arm(environment: Mapping[str, str] = os.environ) -> None:
    """Arm the place that the environment names, or none.

    Args:
        environment: where `CURVSERVE_FAILPOINT` is looked up.

    Raises:
        UnknownFailpoint: there is no such place, or its number is no whole number above 0.
    """
    _left.clear()
    setting = environment.get(VARIABLE, "")
    if not setting:
        return
    name, _, number = setting.partition(":")
    if name not in NAMES:
        raise UnknownFailpoint(f"{VARIABLE} is {setting!r}; the places are {', '.join(NAMES)}")
    if number and not (number.isascii() and number.isdecimal() and int(number)):
        raise UnknownFailpoint(
            f"{VARIABLE} is {setting!r}; expected a whole number above 0 after ':'"
        )
    _left[name] = int(number or 1)


def reached(name: str) -> None:
    """Kill the process if this is the armed place, and it is the time."""
    if name not in _left:
        return
    _left[name] -= 1
    if _left[name] == 0:
        os.kill(os.getpid(), signal.SIGKILL)
