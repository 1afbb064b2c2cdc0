"""The checks that the options of every rule share."""

import sys

from ..errors import InvalidRule


def check_at_least_zero(name: str, value: float) -> None:
    """Refuse an option that is not a finite number >= 0.

    Raises:
        InvalidRule: naming the option, its value and what was expected.
    """
    if not _is_finite(value) or value < 0:
        raise InvalidRule(f"{name} is {value!r}", expected="a finite number >= 0")


def check_above_zero(name: str, value: float) -> None:
    """Refuse an option that is not a finite number > 0.

    Raises:
        InvalidRule: naming the option, its value and what was expected.
    """
    if not _is_finite(value) or value <= 0:
        raise InvalidRule(f"{name} is {value!r}", expected="a finite number > 0")


def _is_finite(value: object) -> bool:
    # compared, not converted: a whole number may be too long for a float
    if not isinstance(value, int | float) or isinstance(value, bool):
        return False
    return abs(value) <= sys.float_info.max
