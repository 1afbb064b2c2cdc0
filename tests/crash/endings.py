"""How servers end in a crash test: at which place, the how-manieth time, at which moment."""

import random
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain

from curvserve.failpoints import NAMES

LEVELS = ("full", "process", "snapshot")

SNAPSHOT_EVERY = 5
"""Changes between two snapshots: few, so that the places inside one are reached soon."""

ANY_MOMENT, AT_START, SIGTERM = "any moment", "at start", "SIGTERM"
"""The places that have no failpoint; the last is no kill but a stop, which has to end cleanly."""

_NOT_REACHED = {"snapshot": ("before_segment_sync", "after_segment_sync")}
"""Level -> failpoints that it does not come by: it keeps no batches."""


@dataclass(frozen=True)
class Ending:
    """The end of one server.

    Attributes:
        place: a failpoint, or one of the others.
        time: at a failpoint: the how-manieth arrival there is the last; elsewhere: how many changes
            are acknowledged before.
        delay: elsewhere: seconds that then pass; at the start, seconds from there.
        cold: whether this server is a new interpreter.
    """

    place: str
    time: int = 1
    delay: float = 0.0
    cold: bool = False

    @property
    def failpoint(self) -> str:
        """What the server is told; empty where the end comes from outside."""
        return f"{self.place}:{self.time}" if self.place in NAMES else ""


def is_kill(ending: Ending) -> bool:
    """Tell whether an ending is a kill."""
    return ending.place != SIGTERM


def kinds_of_end() -> list[str]:
    """Return every place where a server may end."""
    return [*NAMES, ANY_MOMENT, AT_START, SIGTERM]


def places(level: str) -> list[str]:
    """Return every failpoint that a level comes by."""
    return [name for name in NAMES if name not in _NOT_REACHED.get(level, ())]


def each_place_once(level: str, seed: int) -> list[Ending]:
    """Return one kill at every failpoint, a few at random moments and one clean stop, shuffled."""
    chosen = random.Random(seed)
    others = (ANY_MOMENT, ANY_MOMENT, AT_START, SIGTERM)
    found = [_ending(place, chosen) for place in chain(places(level), others)]
    chosen.shuffle(found)
    return found


def at_random(level: str, seed: int, kills: int) -> list[Ending]:
    """Return many kills, half of them at failpoints, with a clean stop now and then."""
    chosen = random.Random(seed)
    return list(_drawn(level, chosen, kills))


def _drawn(level: str, chosen: random.Random, kills: int) -> Iterator[Ending]:
    for number in range(kills):
        cold = number % 25 == 12
        kind = chosen.choices(("failpoint", ANY_MOMENT, AT_START), (5, 4, 1))[0]
        place = chosen.choice(places(level)) if kind == "failpoint" else kind
        yield _ending(place, chosen, cold)
        if number % 20 == 19:
            yield _ending(SIGTERM, chosen)


def _ending(place: str, chosen: random.Random, cold: bool = False) -> Ending:
    if place in NAMES:
        return Ending(place, chosen.randint(1, 3 if "snapshot" in place else 12), cold=cold)
    if place == AT_START:
        return Ending(place, delay=chosen.uniform(0.0, 4.0 if cold else 0.4), cold=cold)
    return Ending(place, chosen.randint(0, 12), chosen.uniform(0.0, 0.05), cold)
