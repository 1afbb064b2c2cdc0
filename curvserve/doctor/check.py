"""One thing that was looked at."""

from dataclasses import asdict, dataclass
from typing import Literal


@dataclass(frozen=True)
class Check:
    """What was looked at, and whether it will do.

    Attributes:
        name: what was looked at.
        found: what was found.
        status: `warning` where a server runs, but not as well or as safely as it could; `error`
            where it does not run.
        advice: what to do; empty where nothing is.
    """

    name: str
    found: str
    status: Literal["ok", "warning", "error"] = "ok"
    advice: str = ""

    def to_dict(self) -> dict[str, str]:
        """Return the record as JSON values."""
        return asdict(self)


def gibibytes(size: float) -> str:
    """Return a number of bytes for people."""
    return f"{size / 2**30:.1f} GiB"
