"""Options of rules: their ranges, and the checks that every rule shares."""

import dataclasses
import math
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from ..errors import InvalidRule


@dataclass(frozen=True)
class Range:
    """The finite numbers that an option may be.

    Attributes:
        low: the lower bound.
        high: the upper bound; infinite where there is none.
        above: whether the lower bound itself is left out.
        below: whether the upper bound itself is left out.
    """

    low: float
    high: float = math.inf
    above: bool = False
    below: bool = False

    def __contains__(self, value: float) -> bool:
        """Tell whether a number is in the range."""
        over = value > self.low if self.above else value >= self.low
        return over and (value < self.high if self.below else value <= self.high)

    def __str__(self) -> str:
        """Say it for people, `>= 0 and < 1` for instance."""
        low = f"{'>' if self.above else '>='} {self.low:g}"
        high = "" if self.high == math.inf else f" and {'<' if self.below else '<='} {self.high:g}"
        return low + high


AT_LEAST_ZERO = Range(0)
AT_LEAST_ONE = Range(1)
ABOVE_ZERO = Range(0, above=True)
FRACTION = Range(0, 1, below=True)


def option(default: float, allowed: Range | None = None) -> Any:
    """Return the dataclass field of an option.

    Args:
        default: its value where none is given; its type (float, int, bool) is the option's.
        allowed: the range of a number.
    """
    return dataclasses.field(default=default, metadata={"range": allowed})


class Checked:
    """The base of every rule: a dataclass of options that are checked when it is made."""

    __dataclass_fields__: ClassVar[dict[str, dataclasses.Field[Any]]]

    def __post_init__(self) -> None:
        """Check the options.

        Raises:
            InvalidRule: naming an option, its value and what was expected.
        """
        for known in dataclasses.fields(self):
            value = getattr(self, known.name)
            if not _is_allowed(value, known):
                raise InvalidRule(f"{known.name} is {value!r}", expected=expected(known))


def expected(known: dataclasses.Field[Any]) -> str:
    """Say what an option may be."""
    if isinstance(known.default, bool):
        return "true or false"
    kind = "a whole number" if isinstance(known.default, int) else "a finite number"
    return f"{kind} {known.metadata['range']}"


def typed(rule: type[Any], options: Mapping[str, float]) -> dict[str, float]:
    """Return options with whole numbers as int where the option is one: JSON may say 5.0."""
    whole = {known.name for known in dataclasses.fields(rule) if type(known.default) is int}
    return {
        name: int(value) if name in whole and _is_whole(value) else value
        for name, value in options.items()
    }


def _is_whole(value: object) -> bool:
    return isinstance(value, float) and value.is_integer()


def _is_allowed(value: object, known: dataclasses.Field[Any]) -> bool:
    if isinstance(known.default, bool):
        return isinstance(value, bool)
    kind = int if isinstance(known.default, int) else int | float
    if not isinstance(value, kind) or isinstance(value, bool):
        return False
    # compared, not converted: a whole number may be too long for a float
    return abs(value) <= sys.float_info.max and value in known.metadata["range"]
