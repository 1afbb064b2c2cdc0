"""One case from check to times."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch

from .case import Case
from .checks import check
from .contestants import CONTESTANTS, Contestant
from .timing import Timed, measure

OURS, PEER = "compiled", "BackPACK"


@dataclass(frozen=True)
class Row:
    """What is known of a case and a quantity.

    Attributes:
        net: the case's name.
        batch: its number of samples.
        quantity: what was computed.
        threads: of the CPU.
        times: contestant -> its times.
        off: contestant -> how far from its reference, relative; None where it has none.
        refused: contestant -> why it does not take part.
    """

    net: str
    batch: int
    quantity: str
    threads: int
    times: Mapping[str, Timed]
    off: Mapping[str, float | None]
    refused: Mapping[str, str]

    def over(self, peer: str) -> float | None:
        """Return our time over another's."""
        both = OURS in self.times and peer in self.times
        return self.times[OURS].median / self.times[peer].median if both else None

    @property
    def over_fastest(self) -> tuple[str, float] | None:
        """The fastest contestant that is not ours and computes the same, and our time over its."""
        others = {
            name: timed.median
            for name, timed in self.times.items()
            if name in CONTESTANTS and not CONTESTANTS[name].own and name != "gradient"
        }
        if not others or OURS not in self.times:
            return None
        fastest = min(others, key=others.__getitem__)
        return fastest, self.times[OURS].median / others[fastest]

    @property
    def worst(self) -> float | None:
        """The largest of `off`."""
        return max((value for value in self.off.values() if value is not None), default=None)

    def to_json(self) -> dict[str, Any]:
        """Return plain values."""
        return {
            **asdict(self),
            "over_peer": self.over(PEER),
            "over_fastest": self.over_fastest,
        }


def compare(
    case: Case,
    quantity: str,
    device: torch.device,
    rounds: int,
    seconds: float = float("inf"),
    kinds: Mapping[str, type[Contestant]] = CONTESTANTS,
) -> Row:
    """Check all contestants that can do a case, then time them.

    Args:
        case: net and data.
        quantity: what is computed.
        device: where.
        rounds: how many are timed.
        seconds: see `measure`.
        kinds: the contestants.

    Raises:
        WrongNumbers: one computes something else.
    """
    checked = check(case, quantity, kinds, device)
    able = {name: kinds[name] for name in checked.off}
    times = timed(case, quantity, able, device, rounds, seconds)
    threads = torch.get_num_threads()
    return Row(case.name, case.batch, quantity, threads, times, checked.off, checked.refused)


def timed(
    case: Case,
    quantity: str,
    kinds: Mapping[str, type[Contestant]],
    device: torch.device,
    rounds: int,
    seconds: float = float("inf"),
) -> dict[str, Timed]:
    """Return the times of contestants that were checked before; see `compare`."""
    passes = {name: kind(case.task(quantity, device)) for name, kind in kinds.items()}
    return measure(passes, rounds, f"{case.name}, {case.batch} {quantity}", device, seconds)
