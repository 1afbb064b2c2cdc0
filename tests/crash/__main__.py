"""The crash test at length: `python -m tests.crash --kills 1000`, or `make crash-test`."""

import argparse
import shutil
import sys
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from tqdm import tqdm

from tests.crash.endings import LEVELS, Ending, at_random, is_kill, kinds_of_end
from tests.crash.nursery import Nursery
from tests.crash.run import Outcome, crash

KILLS_OF_A_RUN = 50
"""After so many, a new folder with new sessions."""

PROMISES = ("lost", "doubled", "different", "other")


def main() -> int:
    """Run, print what came of it, and return the exit status."""
    parser = argparse.ArgumentParser(description="Kill a server while clients train.")
    parser.add_argument("--kills", type=int, default=1000, help="at levels full and process")
    parser.add_argument("--seed", type=int, default=0, help="of all that is drawn")
    given = parser.parse_args()
    plan = _plan(given.kills)
    total = sum(kills for _, kills in plan)
    with Nursery() as nursery, tqdm(total=total, unit=" kills", dynamic_ncols=True) as bar:
        outcomes = [
            _run(nursery, level, given.seed + 10 * number, kills, bar)
            for number, (level, kills) in enumerate(plan)
        ]
    _print_table(outcomes)
    return 1 if any(outcome.violations for outcome in outcomes) else 0


def _plan(kills: int) -> list[tuple[str, int]]:
    """Return level and kills of each run: full and process in turn, then a tenth at snapshot."""
    numbers = [min(KILLS_OF_A_RUN, kills - done) for done in range(0, kills, KILLS_OF_A_RUN)]
    further = max(1, kills // 10)
    more = [min(KILLS_OF_A_RUN, further - done) for done in range(0, further, KILLS_OF_A_RUN)]
    return [(LEVELS[turn % 2], number) for turn, number in enumerate(numbers)] + [
        ("snapshot", number) for number in more
    ]


def _run(nursery: Nursery, level: str, seed: int, kills: int, bar: "tqdm[None]") -> Outcome:
    folder = Path(tempfile.mkdtemp(prefix="curvserve-crash-"))
    outcome = crash(nursery, folder, level, seed, _shown(at_random(level, seed, kills), bar))
    for violation in outcome.violations:
        bar.write(f"{level}, seed {seed}, files in {folder}: {violation}")
    if not outcome.violations:
        shutil.rmtree(folder)
    return outcome


def _shown(endings: Iterable[Ending], bar: "tqdm[None]") -> Iterator[Ending]:
    for ending in endings:
        yield ending
        bar.update(is_kill(ending))


def _print_table(outcomes: Sequence[Outcome]) -> None:
    levels = {level: [each for each in outcomes if each.level == level] for level in LEVELS}
    rows: dict[str, list[object]] = {
        place: [sum(each.ends[place] for each in found) for found in levels.values()]
        for place in kinds_of_end()
    }
    for name in ("kills", "cold", "acknowledged", "retries", "given_up", "sessions", "equal"):
        rows[name] = [sum(getattr(each, name) for each in found) for found in levels.values()]
    for kind in PROMISES:
        rows[kind] = [_violations(found)[kind] for found in levels.values()]
    _print_row("", list(levels))
    for name, numbers in rows.items():
        _print_row(_MEANING.get(name, name), numbers)


def _violations(outcomes: Iterable[Outcome]) -> Counter[str]:
    return Counter(violation.kind for each in outcomes for violation in each.violations)


def _print_row(name: str, cells: Sequence[object]) -> None:
    print(f"{name:48}" + "".join(f"{cell!s:>10}" for cell in cells))


_MEANING = {
    "SIGTERM": "SIGTERM, no kill",
    "kills": "kills in all",
    "cold": "  of these, new interpreters",
    "acknowledged": "changes acknowledged",
    "retries": "requests sent again",
    "given_up": "acknowledged, not told to be durable, and gone",
    "sessions": "sessions",
    "equal": "  of these, bit-equal to an undisturbed run",
    "lost": "runs with an acknowledged change lost",
    "doubled": "runs with a change taken twice",
    "different": "runs with another answer or state",
    "other": "runs that failed otherwise",
}


if __name__ == "__main__":
    sys.exit(main())
